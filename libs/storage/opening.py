"""Which artifact store a URL means."""

from pathlib import Path

from libs.storage.in_memory import InMemoryArtifactStore
from libs.storage.local import LocalArtifactStore
from libs.storage.store import ArtifactStore, StorageSettings


def open_store(settings: StorageSettings, purpose: str) -> ArtifactStore:
    """The adapter that the URL names, for one purpose ("datasets", "models")."""
    scheme, _, rest = settings.url.partition(":")
    match scheme:
        case "memory":
            return InMemoryArtifactStore()
        case "file":
            return LocalArtifactStore(Path(rest.removeprefix("//")) / purpose)
        case "s3" | "s3+http":
            # Where it is needed only: its package takes some tenths of a second to import.
            from libs.storage.s3 import S3ArtifactStore

            return S3ArtifactStore(settings, purpose)
        case _:
            raise ValueError(f"artifact store URL with {scheme!r}: the scheme must be file, memory, s3 or s3+http")
