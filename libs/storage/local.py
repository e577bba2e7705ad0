"""Artifact store adapter for one machine: a folder, each object a read-only file, synced before it is acknowledged."""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from libs.errors import NotFound
from libs.storage.disk import disk_errors
from libs.storage.indirect import Indirect
from libs.storage.limit import limited
from libs.storage.store import CHUNK, Stored, checked

STALE_SECONDS = 86400.0


class LocalArtifactStore(Indirect):
    """Objects at `root`/ab/cdef…, made under `root`/incoming and moved: a file that is there is whole."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        digits = checked(digest)
        return self._root / digits[:2] / digits[2:]

    async def put(self, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> Stored:
        incoming = self._incoming / uuid4().hex
        sha256, size, pending = hashlib.sha256(), 0, bytearray()
        with disk_errors(), incoming.open("wb") as file:
            try:
                async for chunk in limited(chunks, limit):
                    pending += chunk
                    size += len(chunk)
                    if len(pending) >= CHUNK:
                        await asyncio.to_thread(_write, file, sha256, bytes(pending))
                        pending.clear()
                await asyncio.to_thread(_write, file, sha256, bytes(pending))
                return await asyncio.to_thread(self._keep, file, incoming, sha256.hexdigest(), size)
            finally:
                incoming.unlink(missing_ok=True)

    async def put_file(self, path: Path) -> Stored:
        async def chunks() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    yield chunk

        return await self.put(chunks())

    def _keep(self, file: IO[bytes], incoming: Path, digits: str, size: int) -> Stored:
        path = self._path(f"sha256:{digits}")
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        path.parent.mkdir(exist_ok=True)
        os.replace(incoming, path)
        for folder in (path.parent, self._root):
            _sync_folder(folder)
        return Stored(f"sha256:{digits}", size)

    async def open(self, digest: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        left = length if length is not None else 1 << 62
        with self._found(digest), self._path(digest).open("rb") as file:
            file.seek(offset)
            while left and (chunk := await asyncio.to_thread(file.read, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    async def stat(self, digest: str) -> int:
        with self._found(digest):
            return self._path(digest).stat().st_size

    async def fetch(self, digest: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._found(digest):
            await asyncio.to_thread(_link_or_copy, self._path(digest), path)

    async def discard(self, digest: str, *, idle_seconds: float = 0.0) -> None:
        with suppress(FileNotFoundError):
            if time.time() - self._path(digest).stat().st_mtime >= idle_seconds:
                self._path(digest).unlink()

    async def list(self) -> AsyncIterator[tuple[str, float]]:
        for path in await asyncio.to_thread(lambda: list(self._root.glob("??/*"))):
            with suppress(FileNotFoundError):
                yield f"sha256:{path.parent.name}{path.name}", time.time() - path.stat().st_mtime

    @contextmanager
    def _found(self, digest: str) -> Iterator[None]:
        try:
            with disk_errors():
                yield
        except FileNotFoundError:
            raise NotFound(f"there is no object {digest}") from None


def _write(file: IO[bytes], sha256: "hashlib._Hash", data: bytes) -> None:
    sha256.update(data)
    file.write(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
