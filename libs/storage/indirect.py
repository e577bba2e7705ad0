"""The part of the port that stores answer alike which clients cannot reach."""

from libs.storage.store import DirectUpload, Stored, checked, nothing_uploaded


class Indirect:
    """Everything goes through a service: no addresses are given, and nothing can have been uploaded to one."""

    async def download_url(self, digest: str, *, seconds: int, file_name: str, media_type: str) -> str | None:
        checked(digest)
        return None

    async def upload_url(self, *, digest: str, size: int, seconds: int) -> DirectUpload | None:
        checked(digest)
        return None

    async def adopt(self, upload: str, *, digest: str, size: int) -> Stored:
        raise nothing_uploaded(upload, digest)
