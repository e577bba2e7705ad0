"""The owner's folder, as far as a pod may write into it: plain files below it, by plain names, so many and so large. Follows no link."""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES = 16, 255, 1000
INCOMING = ".incoming"


class Unwelcome(Exception):
    """What the pod wants to write is refused, in words for whoever's program it is."""


@dataclass(frozen=True)
class Limits:
    """What one launch may leave in its folder."""

    file_bytes: int
    total_bytes: int
    files: int


class Landing:
    """Blocking, and not for two threads at once. `journals` alone are appended to; every other file is replaced whole."""

    def __init__(self, root: Path, journals: Sequence[str], limits: Limits) -> None:
        self._root, self._journals, self._limits = root, frozenset(journals), limits
        self._sizes: dict[str, int] = {}

    def admit(self, path: str, size: int) -> None:
        """Raises Unwelcome before a byte of it is read."""
        _parts(path)
        limits = self._limits
        if size > limits.file_bytes:
            raise Unwelcome(f"its file {path} has {size} bytes; at most {limits.file_bytes} are kept")
        if path not in self._sizes and len(self._sizes) >= limits.files:
            raise Unwelcome(f"it has made more than {limits.files} files")
        total = sum(self._sizes.values()) - self._sizes.get(path, 0) + size
        if total > limits.total_bytes:
            raise Unwelcome(f"its files have {total} bytes together; at most {limits.total_bytes} are kept")

    @contextmanager
    def incoming(self, path: str) -> Iterator[IO[bytes]]:
        """A file that becomes `path` when the block ends well."""
        if path in self._journals:
            raise Unwelcome(f"{path} is only added to")
        with self._folder([INCOMING], made=True) as waiting:
            name = uuid4().hex
            file = os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=waiting), "wb")
            try:
                with file:
                    yield file
                    size = file.tell()
                self._place(name, waiting, path)
                self._sizes[path] = size
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=waiting)

    def _place(self, name: str, waiting: int, path: str) -> None:
        *folders, last = _parts(path)
        try:
            with self._folder(folders, made=True) as folder:
                os.replace(name, last, src_dir_fd=waiting, dst_dir_fd=folder)
        except (NotADirectoryError, IsADirectoryError) as error:
            raise Unwelcome(f"{path} cannot be there: a part of it is a folder, or is none") from error

    @contextmanager
    def journal(self, path: str) -> Iterator[IO[bytes]]:
        """A journal, at its end."""
        if path not in self._journals:
            raise Unwelcome(f"{path} is none of the files that are added to")
        *folders, last = _parts(path)
        with self._folder(folders, made=True) as folder:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(last, flags, 0o600, dir_fd=folder), "ab") as file:
                status = os.fstat(file.fileno())
                # One that has another name too is somebody else's: the artifact store lends its objects by hard links.
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    raise Unwelcome(f"{path} is no plain file")
                try:
                    yield file
                finally:
                    file.flush()
                    self._sizes[path] = os.fstat(file.fileno()).st_size

    def delete(self, path: str) -> None:
        """One that is not there is fine; so is a folder that stays because others are in it."""
        *folders, last = _parts(path)
        with suppress(FileNotFoundError, NotADirectoryError), self._folder(folders) as folder:
            os.unlink(last, dir_fd=folder)
        self._sizes.pop(path, None)
        while folders:
            *outer, last = folders
            try:
                with self._folder(outer) as folder:
                    os.rmdir(last, dir_fd=folder)
            except OSError:
                return
            folders = outer

    def clear(self) -> None:
        """Removes what has not become a file."""
        shutil.rmtree(self._root / INCOMING, ignore_errors=True)

    @contextmanager
    def _folder(self, parts: Sequence[str], *, made: bool = False) -> Iterator[int]:
        """A folder below the root, reached step by step: no step may be a link."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        folder = os.open(self._root, flags)
        try:
            for part in parts:
                if made:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=folder)
                inner = os.open(part, flags, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)


def _parts(path: str) -> list[str]:
    """The names of a path that leads below the folder, and to nothing of ours."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise Unwelcome("a file's name is no text") from error
    parts = path.split("/")
    if size > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise Unwelcome(f"the path {path[:60]!r}… is too long or too deep")
    for part in parts:
        if part in ("", ".", "..") or part.startswith(".") or len(part.encode()) > MAX_NAME_BYTES or not part.isprintable():
            raise Unwelcome(f"{path[:200]!r} is no path below its folder")
    return parts
