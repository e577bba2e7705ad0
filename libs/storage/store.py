"""The artifact store port: content-addressed objects, one bucket a purpose, each purpose owned by one service."""

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from libs.errors import Invalid, NotFound, Violation
from libs.settings import Block

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK = 1 << 20


class StorageSettings(Block):
    """`url`: "file:///folder", "memory:", or a server of S3: "s3://host:443" (TLS), "s3+http://host:9000" (plain). The rest is of S3."""

    url: str = "memory:"
    # No URL holds them.
    access_key: str = ""
    secret_key: SecretStr = SecretStr("")
    region: str = "us-east-1"
    # Before the purpose: "lepton-" makes "lepton-datasets". Of one platform alone: sweeps remove what its rows do not name.
    bucket_prefix: str = "lepton-"
    # Where clients reach the same server, as "https://files.example.com": large files then go there and come from there.
    # Empty: through the gateway.
    public_url: str = ""
    # PEM of the authority that the server's certificate comes from; empty: the well-known ones.
    ca_file: str = ""
    # Longest silence of the server.
    read_seconds: float = 60.0


@dataclass(frozen=True)
class Stored:
    """What was kept: "sha256:…" of the bytes, and how many."""

    digest: str
    size: int


@dataclass(frozen=True)
class DirectUpload:
    """A PUT that anybody may do who holds `url`, with these headers and the bytes; `id` is what adopt() takes afterwards."""

    id: str
    # As good as a key.
    url: str = field(repr=False)
    headers: Mapping[str, str]


class ArtifactStore(Protocol):
    """Objects of one purpose. Every method raises AppError: not_found, too_large, storage_full, unavailable, invalid_data (damaged)."""

    async def put(self, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> Stored:
        """Keeps the bytes for good before it returns; a stream that breaks off or exceeds `limit` bytes leaves nothing."""
        ...

    async def put_file(self, path: Path) -> Stored:
        """The same of a file, which stays where it is."""
        ...

    def open(self, digest: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes, in chunks of at most 1 MiB. What crossed a network whole is checked: damaged bytes lack their last chunk."""
        ...

    async def stat(self, digest: str) -> int:
        """Size in bytes."""
        ...

    async def fetch(self, digest: str, path: Path) -> None:
        """Makes `path` a file with the bytes, checked against the digest where they crossed a network. Do not write to it."""
        ...

    async def discard(self, digest: str, *, idle_seconds: float = 0.0) -> None:
        """Removes the object unless it was put again in the last `idle_seconds`; one that is not there is fine."""
        ...

    async def download_url(self, digest: str, *, seconds: int, file_name: str, media_type: str) -> str | None:
        """Where anybody may GET this object for so long, under that name and type; None where clients do not reach the store."""
        ...

    async def upload_url(self, *, digest: str, size: int, seconds: int) -> DirectUpload | None:
        """Where these bytes alone may be PUT, in one request begun within `seconds`; None where clients do not reach the store.

        Raises too_large where one request cannot carry so many.
        """
        ...

    async def adopt(self, upload: str, *, digest: str, size: int) -> Stored:
        """Keeps what was PUT there, which must be these bytes: that another object has them is not enough. May be asked again.

        Raises NotFound while nothing was, and Invalid for other bytes, which are removed.
        """
        ...

    def list(self) -> AsyncIterator[tuple[str, float]]:
        """Every digest, with the seconds since it was last put."""
        ...


def digest_of(data: bytes) -> str:
    """The name that `data` has in every store."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def checked(digest: str) -> str:
    """The 64 hexadecimal digits of a digest; raises Invalid on anything else, so that no name from outside becomes a path."""
    if not DIGEST.fullmatch(digest):
        raise Invalid.of([Violation("digest", "must be 'sha256:' and 64 hexadecimal digits")])
    return digest.removeprefix("sha256:")


def nothing_uploaded(upload: str, digest: str) -> NotFound:
    """What adopt() says to an upload that did not happen, once the digest is seen to be one."""
    checked(digest)
    return NotFound(f"nothing was uploaded as {upload[:64]!r}; PUT the bytes to the address of the upload first")
