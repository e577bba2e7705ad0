"""A ZIP of PNG and JPEG files in a folder a class. The directory is checked before anything is unpacked, every picture is decoded once.

Nothing is ever written under a name from the archive.
"""

import io
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image

from libs.errors import Invalid, Violation
from services.data.engine.columns import Column, refuse
from services.data.engine.limits import MIB, Limits

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif"}
# What file managers leave behind.
LITTER = {".ds_store", "thumbs.db", "desktop.ini"}
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"}
COLUMNS = [Column("image", "image"), Column("label", "string"), Column("path", "string")]
SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string()), ("path", pa.string())])
BATCH_BYTES = 16 * MIB
LOCAL_HEADER_BYTES = 30
EXPANSION_FREE_BYTES = 64 * MIB
LAYOUT = "put the pictures into a folder a class: cat/1.png, dog/1.png"


@dataclass(frozen=True)
class Picture:
    """One entry that is to be read."""

    entry: zipfile.ZipInfo
    label: str
    path: str


@dataclass(frozen=True)
class Album:
    """An archive that was checked as far as its directory tells; entries in the order of their paths."""

    pictures: list[Picture]
    notices: list[str]


def open_album(path: Path, limits: Limits) -> tuple[zipfile.ZipFile, Album]:
    """Raises Invalid for what the directory shows; the caller closes the archive."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        message = f"the ZIP cannot be opened ({error}): it is cut off or damaged; pack it again"
        raise refuse("", message) from error
    try:
        return archive, _check(archive, path.stat().st_size, limits)
    except BaseException:
        archive.close()
        raise


def batches(archive: zipfile.ZipFile, album: Album, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The table's rows; raises Invalid that names the picture which cannot be read."""
    Image.MAX_IMAGE_PIXELS = limits.max_picture_pixels
    images: list[bytes] = []
    chosen: list[Picture] = []
    total = 0
    size = 0
    for picture in album.pictures:
        content = _read(archive, picture, limits)
        total += len(content)
        if total > limits.max_expanded_bytes:
            raise _bomb(f"it unpacks to more than {limits.max_expanded_bytes} bytes")
        _decode(content, picture.path, limits)
        images.append(content)
        chosen.append(picture)
        size += len(content)
        if size > BATCH_BYTES:
            yield _batch(images, chosen)
            images, chosen, size = [], [], 0
    if images:
        yield _batch(images, chosen)


def _batch(images: Sequence[bytes], chosen: Sequence[Picture]) -> pa.RecordBatch:
    arrays = [
        pa.array(images, pa.binary()),
        pa.array([picture.label for picture in chosen], pa.string()),
        pa.array([picture.path for picture in chosen], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _check(archive: zipfile.ZipFile, archive_bytes: int, limits: Limits) -> Album:
    entries = archive.infolist()
    if not entries:
        raise refuse("", f"the ZIP is empty; {LAYOUT}")
    if len(entries) > 2 * limits.max_pictures:
        raise refuse("", f"the ZIP has {len(entries)} entries; at most {limits.max_pictures} pictures are taken", code="too_large")
    _check_kind(entries)
    violations = [violation for entry in entries if (violation := _unsafe(entry))]
    if violations:
        raise Invalid.of(violations[:20], code="invalid_data")
    _check_expansion(entries, archive_bytes, limits)
    _check_overlap(archive, entries)
    return _layout(entries, limits)


def _check_kind(entries: Sequence[zipfile.ZipInfo]) -> None:
    """A ZIP is many things; the usual ones are called by their name."""
    names = {entry.filename for entry in entries}
    code = "unsupported_media_type"
    if "[Content_Types].xml" in names:
        raise refuse("", "the file is an Excel or Word document; save the sheet as CSV (UTF-8)", code=code)
    if any(name.endswith("data.pkl") for name in names):
        raise refuse("", "the file is a PyTorch checkpoint, which can run code and is never read; upload data here", code=code)
    if names and all(name.endswith(".npy") for name in names):
        raise refuse("", "the file holds NumPy arrays; write them as a table with named columns, e.g. Parquet", code=code)
    files = [entry.filename for entry in entries if not entry.is_dir() and not _litter(entry.filename)]
    if files and all(PurePosixPath(name).suffix.lower() in TABLES for name in files):
        raise refuse(files[0], f"the ZIP holds a table; upload '{PurePosixPath(files[0]).name}' itself, without the ZIP", code=code)


def _unsafe(entry: zipfile.ZipInfo) -> Violation | None:
    """What is wrong with an entry's name or kind, whatever it holds."""
    # `filename` is cut at a NUL byte; `orig_filename` is what the archive says.
    name = entry.orig_filename
    shown = name[:200]
    if "\\" in name:
        return Violation(shown, "the name has a backslash; use / between folders")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return Violation(shown, "the name is absolute; names must begin with the folder of the class")
    if ".." in name.split("/") or "." in name.split("/"):
        return Violation(shown, "the name leads out of the archive ('..') or in circles ('.'); names must be plain folder/file")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name) or len(name) > 1024:
        return Violation(shown, "the name has control characters or more than 1024 characters; use plain names")
    if entry.flag_bits & 0x41:
        return Violation(shown, "the entry is encrypted; pack the ZIP without a password")
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode) or (stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))):
        return Violation(shown, "the entry is a link or a device, not a file; pack the pictures themselves")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Violation(shown, "the entry is packed by an unusual method; pack the ZIP with deflate or without compression")
    return None


def _bomb(why: str) -> Invalid:
    return refuse("", f"the ZIP was not unpacked: {why}", code="too_large")


def _check_expansion(entries: Sequence[zipfile.ZipInfo], archive_bytes: int, limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    if total > limits.max_expanded_bytes:
        raise _bomb(f"it says that it unpacks to {total} bytes; at most {limits.max_expanded_bytes} are allowed")
    if total > EXPANSION_FREE_BYTES and total > archive_bytes * limits.max_expansion:
        raise _bomb(
            f"it says that it unpacks to {total // max(archive_bytes, 1)} times its size; at most {limits.max_expansion} times are allowed"
        )
    for entry in entries:
        if entry.file_size > limits.max_picture_bytes:
            raise refuse(entry.filename, f"has {entry.file_size} bytes; a picture may have {limits.max_picture_bytes}", code="too_large")


def _check_overlap(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Entries that share bytes make a small file unpack to a huge one (CVE-2024-0450; Python checks it from 3.11.8 on)."""
    ends = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < ends:
            raise _bomb(f"'{entry.filename}' shares bytes with another entry")
        name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437", "replace")
        ends = entry.header_offset + LOCAL_HEADER_BYTES + len(name) + entry.compress_size
    if ends > archive.start_dir:
        raise _bomb("an entry reaches into the directory of the ZIP")


def _litter(name: str) -> bool:
    parts = name.lower().split("/")
    return "__macosx" in parts or parts[-1] in LITTER or parts[-1].startswith("._")


def _layout(entries: Sequence[zipfile.ZipInfo], limits: Limits) -> Album:
    """class/picture, or top/class/picture with one common top; raises for anything else."""
    files = [entry for entry in entries if not entry.is_dir() and not _litter(entry.filename)]
    folders = {entry.filename.rstrip("/") for entry in entries if entry.is_dir() and not _litter(entry.filename.rstrip("/"))}
    if not files:
        raise refuse("", f"the ZIP holds no picture; {LAYOUT}")
    parts = {entry.filename: entry.filename.split("/") for entry in files}
    tops = {path[0] for path in parts.values()} | {folder.split("/")[0] for folder in folders}
    depth = 2 if len(tops) == 1 and all(len(path) > 2 for path in parts.values()) else 1
    if len(files) > limits.max_pictures:
        raise refuse("", f"the ZIP has {len(files)} pictures; at most {limits.max_pictures} are taken", code="too_large")
    violations = []
    for name, path in parts.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in SUFFIXES:
            violations.append(
                Violation(name[:200], "is not named as a PNG or JPEG picture (.png, .jpg, .jpeg); leave it out or convert it")
            )
        elif len(path) == 1:
            violations.append(Violation(name[:200], f"lies in no folder, so its class is unknown; {LAYOUT}"))
        elif len(path) != depth + 1:
            violations.append(Violation(name[:200], f"lies {len(path) - 1} folders deep and others {depth}; {LAYOUT}"))
        elif not path[depth - 1].strip():
            violations.append(Violation(name[:200], f"its folder has no name; {LAYOUT}"))
    twice = [name for name, count in Counter(entry.filename for entry in files).items() if count > 1]
    violations += [Violation(name[:200], "is in the ZIP twice; every name must be there once") for name in twice]
    labels = {path[depth - 1] for path in parts.values() if len(path) == depth + 1}
    violations += [
        Violation(folder, "is a class with no picture in it; add some or leave it out") for folder in _empty(folders, labels, depth)
    ]
    if violations:
        raise Invalid.of(violations[:20], code="invalid_data")
    pictures = [Picture(entry, parts[entry.filename][depth - 1], "/".join(parts[entry.filename][depth - 1 :])) for entry in files]
    notices = ["All pictures are of one class; a classifier needs at least two."] if len(labels) == 1 else []
    return Album(sorted(pictures, key=lambda picture: picture.path), notices)


def _empty(folders: set[str], labels: set[str], depth: int) -> list[str]:
    return sorted(folder for folder in folders if folder.count("/") == depth - 1 and folder.split("/")[-1] not in labels)


def _read(archive: zipfile.ZipFile, picture: Picture, limits: Limits) -> bytes:
    """The entry's bytes, never more than its directory said."""
    bound = min(picture.entry.file_size, limits.max_picture_bytes)
    try:
        with archive.open(picture.entry) as file:
            content = file.read(bound + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, struct.error, OSError) as error:
        raise refuse(picture.path, f"cannot be unpacked ({error}): the ZIP is cut off or damaged; pack it again") from error
    if len(content) > bound:
        raise _bomb(f"'{picture.path}' is larger than the directory of the ZIP says")
    if not content:
        raise refuse(picture.path, "is empty; leave it out")
    return content


def _decode(content: bytes, name: str, limits: Limits) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > limits.max_picture_pixels:
                raise _pixels(name, f"{image.width} × {image.height}", limits)
            # JPEG decodes eight times smaller: all of its bytes are read, few are kept.
            image.draft("RGB", (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _pixels(name, "too many", limits) from error
    except (MemoryError, Invalid):
        raise
    except Exception as error:
        # Pillow raises whatever a decoder of hostile bytes comes upon.
        raise refuse(name, f"is no PNG or JPEG picture that can be decoded ({_words(error)}); replace it or leave it out") from error


def _pixels(name: str, found: str, limits: Limits) -> Invalid:
    return refuse(name, f"has {found} pixels; a picture may have {limits.max_picture_pixels}: make it smaller", code="too_large")


def _words(error: Exception) -> str:
    text = str(error)
    return "its bytes are those of another kind of file" if "cannot identify image file" in text else text[:100]
