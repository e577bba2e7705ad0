"""What was used, on disk until somebody has taken it: a line is written before the answer it is about, and survives a kill -9.

Knows lines and files; not what they mean. A segment has a name that no other has, under which it is taken once.
"""

import asyncio
import errno
import fcntl
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import structlog

from libs.errors import AppError, Transient
from libs.lifecycle import Loop

SEAL_SECONDS = 0.25
# A segment that grows faster is closed before its time, so that reading it is never much.
_SEGMENT_BYTES = 8 << 20
_OPEN, _SEALED = ".open", ".sealed"
# For an operator: whoever takes it will never take it as it is.
_REFUSED = ".refused"
_log = structlog.get_logger(__name__)

Take = Callable[[str, list[list[Any]]], Awaitable[None]]


class Spool:
    """A lifecycle component. `take(name, lines)` must have no effect when it is called again with the same name.

    Several processes may share a folder: each writes its own segments, and what a dead one left is taken by any.
    """

    def __init__(self, folder: Path, take: Take) -> None:
        self._folder = folder
        self._take = take
        self._file = -1
        self._path = Path()
        self._size = 0
        self._loop = Loop("spool", self._turn, interval=SEAL_SECONDS)

    async def start(self) -> None:
        """Raises OSError where the folder cannot be written to."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open()
        await self._loop.start()

    async def stop(self) -> None:
        """Gives away what there is, once; what nobody takes now stays for the next process."""
        await self._loop.stop()
        if self._file >= 0:
            await self._seal()
            with suppress(AppError):
                await self._give_away()
            os.close(self._file)
            self._file = -1
            self._path.unlink()

    def write(self, *line: object) -> None:
        """Returns once the line is where a kill of this process does not reach it. Raises `storage_full`."""
        content = orjson.dumps(line) + b"\n"
        try:
            written = os.write(self._file, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full() from error
        if written < len(content):
            # What was written of it must not stand before the next line.
            os.ftruncate(self._file, self._size)
            raise _full()
        self._size += written
        if self._size > _SEGMENT_BYTES:
            self._loop.wake()

    async def _turn(self) -> bool:
        if self._size:
            await self._seal()
        await asyncio.to_thread(self._adopt)
        await self._give_away()
        return False

    def _open(self) -> None:
        while True:
            path = self._folder / f"{uuid.uuid4().hex}{_OPEN}"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            # Held while this process lives.
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                self._file, self._path, self._size = file, path, 0
                return
            # Another process was between the two lines above, and took it for a dead one's.
            os.close(file)

    async def _seal(self) -> None:
        file, path = self._file, self._path
        self._open()
        await asyncio.to_thread(_finish, file, path)

    def _adopt(self) -> None:
        """Seals what processes that are gone have left."""
        for path in self._folder.glob(f"*{_OPEN}"):
            if path == self._path:
                continue
            with suppress(FileNotFoundError, BlockingIOError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(file)
                    raise
                _finish(file, path)

    async def _give_away(self) -> None:
        for path in self._folder.glob(f"*{_SEALED}"):
            lines = await asyncio.to_thread(_lines, path)
            try:
                await self._take(path.stem, lines)
            except Transient:
                raise
            except AppError as error:
                _log.error("segment_refused", segment=path.name, lines=len(lines), exc_info=error)
                path.rename(path.with_suffix(_REFUSED))
            else:
                path.unlink(missing_ok=True)


def _full() -> AppError:
    words = "the disk that keeps what is to be billed is full, so that the answer is not given; free some space and try again"
    return AppError(words, code="storage_full")


def _finish(file: int, path: Path) -> None:
    try:
        if os.fstat(file).st_size:
            os.fsync(file)
            path.rename(path.with_suffix(_SEALED))
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _lines(path: Path) -> list[list[Any]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        # Another process was faster.
        return []
    found = []
    for line in content.splitlines():
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            # Power went while it was written; its answer was never sent.
            _log.warning("torn_line", segment=path.name)
    return found
