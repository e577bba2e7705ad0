"""A ZIP that somebody sent, as a folder of files: its directory is checked before anything is unpacked. Knows nothing of models.

What could make the reader itself take memory is refused by the file's last bytes.
"""

import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from libs.errors import Invalid, Violation

MAX_FILES = 95
MAX_BYTES = 1 << 30
_MAX_DIRECTORY_BYTES = 128 << 10
_CHUNK = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,200}")
_END = struct.Struct("<4s4H2LH")
# What reading a ZIP raises that is none.
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, ValueError, RuntimeError)


def unpack(archive: Path, folder: Path) -> list[str]:
    """Writes the files below `folder` and answers their paths. Raises `Invalid` in words for every archive that is not just files."""
    check_end(archive, MAX_FILES, _MAX_DIRECTORY_BYTES)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            _check(entries)
            left = MAX_BYTES
            for entry in entries:
                left -= write(opened, entry, folder / entry.filename, left)
    except BROKEN as error:
        raise _broken(f"the ZIP cannot be unpacked ({error}); pack it again") from error
    return [entry.filename for entry in entries]


def check_end(archive: Path, most_files: int, most_directory_bytes: int) -> None:
    """The reader takes the whole directory into memory: how large it is stands in the last bytes. Raises `Invalid`."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END.size - 20))
        tail = file.read()
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
        raise _broken("the file is no ZIP, is cut off, or has a comment; pack the folder's files into a plain ZIP")
    count, length = _END.unpack(tail[-_END.size :])[4:6]
    if tail[:4] == b"PK\x06\x07":
        raise _broken(f"the ZIP is of the large kind (ZIP64); at most {MAX_BYTES >> 20} MiB are taken", code="too_large")
    if count > 2 * most_files or length > most_directory_bytes:
        raise _broken(f"the ZIP has {count} entries; at most {most_files} files are taken", code="too_large")


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if not entries:
        raise _broken("the ZIP holds no file")
    if len(entries) > MAX_FILES:
        raise _broken(f"the ZIP holds {len(entries)} files; at most {MAX_FILES} are taken", code="too_large")
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise _broken(f"the files have more than {MAX_BYTES >> 20} MiB together, as many as are taken", code="too_large")
    wrong = [Violation(entry.orig_filename[:200], words) for entry in entries if (words := _unsafe(entry))]
    names = [entry.filename.lower() for entry in entries]
    wrong += [Violation(name[:200], "is there twice") for name in sorted(set(names)) if names.count(name) > 1]
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    wrong += [Violation(name[:200], "is a file and a folder") for name in names if name in folders]
    if wrong:
        raise Invalid.of(wrong[:20], code="invalid_data")


def _unsafe(entry: zipfile.ZipInfo) -> str:
    """What is wrong with an entry's name or kind, whatever it holds."""
    parts = entry.orig_filename.split("/")
    if len(parts) > 8 or not all(_PART.fullmatch(part) for part in parts):
        return "names take letters, digits, dots, dashes, pluses and underscores, begin with a letter, a digit or an underscore"
    return unusual(entry)


def unusual(entry: zipfile.ZipInfo) -> str:
    """Why an entry is no plain file, whatever its name; empty where it is one."""
    if entry.flag_bits & 0x41:
        return "is encrypted; pack the ZIP without a password"
    if entry.header_offset < 0:
        return "begins before the ZIP does; pack it again"
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        return "is a link or a device, not a file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed by an unusual method; pack the ZIP with deflate or without compression"
    return ""


def write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int) -> int:
    """How many bytes it had; what the directory says of them is not believed. Raises `Invalid` beyond `left`, and `BROKEN`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with opened.open(entry) as packed, path.open("xb") as file:
        while part := packed.read(_CHUNK):
            size += len(part)
            if size > left:
                raise _broken(f"the ZIP unpacks to more than {MAX_BYTES >> 20} MiB, as many as are taken", code="too_large")
            file.write(part)
    return size


def _broken(detail: str, code: str = "invalid_data") -> Invalid:
    return Invalid(detail, code=code)
