"""Artifact store adapter for tests: objects in this process's memory."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from libs.errors import NotFound
from libs.storage.indirect import Indirect
from libs.storage.limit import limited
from libs.storage.store import CHUNK, Stored, checked, digest_of


class InMemoryArtifactStore(Indirect):
    """Keeps everything until the process ends."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, float]] = {}

    async def put(self, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> Stored:
        data = b"".join([chunk async for chunk in limited(chunks, limit)])
        digest = digest_of(data)
        self._objects[digest] = (data, time.monotonic())
        return Stored(digest, len(data))

    async def put_file(self, path: Path) -> Stored:
        async def chunks() -> AsyncIterator[bytes]:
            yield await asyncio.to_thread(path.read_bytes)

        return await self.put(chunks())

    def _get(self, digest: str) -> bytes:
        checked(digest)
        if digest not in self._objects:
            raise NotFound(f"there is no object {digest}")
        return self._objects[digest][0]

    async def open(self, digest: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        data = self._get(digest)[offset:][:length]
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]

    async def stat(self, digest: str) -> int:
        return len(self._get(digest))

    async def fetch(self, digest: str, path: Path) -> None:
        data = self._get(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_bytes, data)

    async def discard(self, digest: str, *, idle_seconds: float = 0.0) -> None:
        checked(digest)
        if digest in self._objects and time.monotonic() - self._objects[digest][1] >= idle_seconds:
            del self._objects[digest]

    async def list(self) -> AsyncIterator[tuple[str, float]]:
        for digest, (_, put) in list(self._objects.items()):
            yield digest, time.monotonic() - put
