"""Artifact store adapter for a server of S3: a bucket a purpose, bytes checked on every way. Knows the event loop; s3_bucket does not."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar
from uuid import uuid4

import structlog
from minio.datatypes import Part

from libs.errors import AppError, Transient
from libs.storage.disk import disk_errors
from libs.storage.limit import limited
from libs.storage.s3_bucket import INCOMING, PART_BYTES, Bucket, name_of
from libs.storage.s3_reader import Reader
from libs.storage.store import CHUNK, DirectUpload, StorageSettings, Stored

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

# Calls at once; the rest waits for its turn.
THREADS = 8
# Parts of all uploads that wait for the server: what bounds their memory.
PARTS_AT_ONCE = 4
PAGE = 1000
FILE_CHUNK = 4 * CHUNK


class S3ArtifactStore:
    """What is longer than a part goes in under a name of its own and is copied, on the server, to that of its digest."""

    def __init__(self, settings: StorageSettings, purpose: str) -> None:
        self._bucket = Bucket(settings, purpose, THREADS)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"store-{purpose}")
        self._slots = asyncio.Semaphore(PARTS_AT_ONCE)
        self._cleaning: set[asyncio.Task[None]] = set()

    async def put(self, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> Stored:
        async with aclosing(_parts(limited(chunks, limit))) as parts:
            part = await anext(parts, b"")
            if len(part) < PART_BYTES:
                return await self._run(self._bucket.put, part)
            incoming, sha256 = f"{INCOMING}{uuid4().hex}", hashlib.sha256()
            async with self._upload(incoming) as upload:
                while part:
                    await self._run(sha256.update, part)
                    await upload.add(part)
                    part = await anext(parts, b"")
        stored = Stored(f"sha256:{sha256.hexdigest()}", upload.size)
        try:
            await self._run(self._bucket.copy, incoming, name_of(stored.digest), stored.size)
        except BaseException as error:
            await self._clean(self._remove(incoming), error)
            raise
        await self._remove(incoming)
        return stored

    async def put_file(self, path: Path) -> Stored:
        """Its digest is known before the upload, which spares the copy."""
        with path.open("rb") as file:
            part = await self._run(file.read, PART_BYTES)
            if len(part) < PART_BYTES:
                return await self._run(self._bucket.put, part)
            digest, sha256 = await self._run(_digest_of_file, path), hashlib.sha256()
            async with self._upload(name_of(digest)) as upload:
                while part:
                    await self._run(sha256.update, part)
                    await upload.add(part)
                    part = await self._run(file.read, part_bytes(upload.count))
                if f"sha256:{sha256.hexdigest()}" != digest:
                    raise Transient(f"{path.name} was changed while it was being stored; try again", code="stale")
        await self._run(self._bucket.refresh, name_of(digest), upload.size)
        return Stored(digest, upload.size)

    async def open(self, digest: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        reader = Reader(self._bucket, digest, offset, length)
        try:
            while chunk := await self._run(reader.read, CHUNK):
                yield chunk
        finally:
            self._close(reader)

    async def stat(self, digest: str) -> int:
        size, _ = await self._run(self._bucket.stat, digest)
        return size

    async def fetch(self, digest: str, path: Path) -> None:
        reader = Reader(self._bucket, digest)
        part = path.with_name(f".{path.name[:80]}.{uuid4().hex}.part")
        try:
            with disk_errors():
                path.parent.mkdir(parents=True, exist_ok=True)
                with part.open("wb") as file:
                    while await self._run(_copy_on, reader, file):
                        pass
                os.replace(part, path)
        finally:
            self._close(reader)
            part.unlink(missing_ok=True)

    async def discard(self, digest: str, *, idle_seconds: float = 0.0) -> None:
        await self._run(self._bucket.discard, digest, idle_seconds)

    async def download_url(self, digest: str, *, seconds: int, file_name: str, media_type: str) -> str | None:
        return self._bucket.download_url(digest, seconds, file_name, media_type)

    async def upload_url(self, *, digest: str, size: int, seconds: int) -> DirectUpload | None:
        return await self._run(self._bucket.upload_url, uuid4().hex, digest, size, seconds)

    async def adopt(self, upload: str, *, digest: str, size: int) -> Stored:
        return await self._run(self._bucket.adopt, upload, digest, size)

    async def list(self) -> AsyncIterator[tuple[str, float]]:
        """Sweeps ask: what uploads left behind goes with them, where the server has no rule for it."""
        try:
            await self._run(self._bucket.clear_leftovers)
        except AppError as error:
            log.warning("artifact_leftovers_kept", error=str(error))
        objects = self._bucket.objects()
        while page := await self._run(_page, objects):
            for found in page:
                yield found

    async def _run(self, work: Callable[P, T], *args: P.args, **words: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **words))

    @asynccontextmanager
    async def _upload(self, name: str) -> AsyncIterator["_Upload"]:
        """Its parts become one object when the block ends well, and nothing otherwise."""
        upload = _Upload(self._bucket, name, await self._run(self._bucket.begin, name), self._threads, self._slots)
        try:
            yield upload
            parts = await upload.parts()
            await self._run(self._bucket.complete, name, upload.id, parts, upload.size)
        except BaseException as error:
            await self._clean(self._drop(upload), error)
            raise

    async def _drop(self, upload: "_Upload") -> None:
        await upload.silence()
        try:
            await self._run(self._bucket.abort, upload.name, upload.id)
        except AppError as error:
            log.warning("artifact_upload_left", name=upload.name, error=str(error))
        if upload.name.startswith(INCOMING):
            # Completing may have been done though its answer was lost.
            await self._remove(upload.name)

    async def _remove(self, name: str) -> None:
        """What is left over goes after a day by itself."""
        try:
            await self._run(self._bucket.remove, name)
        except AppError as error:
            log.warning("artifact_left", name=name, error=str(error))

    async def _clean(self, work: Coroutine[Any, Any, None], error: BaseException) -> None:
        """Also where the caller goes away meanwhile. A server that has just failed is not waited for again."""
        task = asyncio.create_task(work)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        if not isinstance(error, Transient):
            await asyncio.shield(task)

    def _close(self, reader: Reader) -> None:
        """Not here: it waits for a read that was given up."""
        if reader.is_open:
            with suppress(RuntimeError):  # the process ends
                self._threads.submit(reader.close)


class _Upload:
    """Parts on their way, a few at once."""

    def __init__(self, bucket: Bucket, name: str, id: str, threads: ThreadPoolExecutor, slots: asyncio.Semaphore) -> None:
        self.name, self.id = name, id
        self.size = 0
        self._bucket, self._threads, self._slots = bucket, threads, slots
        self._sent: list[asyncio.Future[Part]] = []
        self._error: BaseException | None = None

    @property
    def count(self) -> int:
        return len(self._sent)

    async def add(self, data: bytes) -> None:
        """Returns once the server has room for it; raises what an earlier part met."""
        await self._slots.acquire()
        sent = asyncio.get_running_loop().run_in_executor(self._threads, self._bucket.send, self.name, self.id, len(self._sent) + 1, data)
        sent.add_done_callback(self._note)
        self._sent.append(sent)
        self.size += len(data)
        if self._error is not None:
            raise self._error

    async def parts(self) -> list[Part]:
        """All of them, once they have arrived."""
        return list(await asyncio.shield(asyncio.gather(*self._sent)))

    async def silence(self) -> None:
        """Waits for what is under way: a part that came after an abort would stay."""
        await asyncio.gather(*self._sent, return_exceptions=True)

    def _note(self, sent: "asyncio.Future[Part]") -> None:
        self._slots.release()
        if not sent.cancelled() and sent.exception() is not None:
            self._error = sent.exception()


def part_bytes(count: int) -> int:
    """Size of the part after so many: they grow, as an upload may have 10,000."""
    return PART_BYTES << (count // 1000)


async def _parts(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    pending, count = bytearray(), 0
    async with aclosing(chunks):
        async for chunk in chunks:
            pending += chunk
            while len(pending) >= (size := part_bytes(count)):
                yield bytes(memoryview(pending)[:size])
                del pending[:size]
                count += 1
    if pending:
        yield bytes(pending)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _copy_on(reader: Reader, file: IO[bytes]) -> bool:
    data = reader.read(FILE_CHUNK)
    file.write(data)
    return bool(data)


def _page(objects: Iterator[tuple[str, float]]) -> list[tuple[str, float]]:
    return list(islice(objects, PAGE))
