"""The wheels that come with a model: which of them its requirements need, whether they fit, and their files. Nothing in them is run."""

import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from libs.errors import Invalid, Violation
from libs.modelkit import archive
from libs.modelkit.custom import REQUIREMENTS, Pinned, requirements
from libs.modelkit.image import PLATFORMS, PYTHON

FOLDER = "wheels"
_MAX_FILES = 50_000
_MAX_DIRECTORY_BYTES = 8 << 20
_MAX_METADATA_BYTES = 1 << 20
_MAX_REQUIRES, _LONGEST_REQUIRE = 1000, 1000
_IMPORTED = ("purelib", "platlib")


@dataclass(frozen=True)
class Wheel:
    """A wheel that fits this interpreter and machine. `places`: where in a folder of packages each of its files goes, by its name in it."""

    path: Path
    name: str
    version: Version
    requires: Sequence[Requirement]
    places: Mapping[str, str]
    size: int


def needed(folder: Path, installed: Callable[[str], str | None]) -> list[Wheel]:
    """Those of a model's folder that its requirements.txt leads to. `installed`: a package's version in the image, by its name.

    Raises `Invalid` for wheels that are none or do not fit, and for each requirement that is neither in a wheel nor in the image.
    """
    wheels = _read(sorted((folder / FOLDER).iterdir()) if (folder / FOLDER).is_dir() else [])
    waiting = deque((_pinned(each), f"{REQUIREMENTS}, line {each.line}", "") for each in requirements(folder))
    taken: dict[str, Wheel] = {}
    wrong: list[Violation] = []
    seen: set[str] = set()
    while waiting:
        wanted, line, why = waiting.popleft()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        name = canonicalize_name(wanted.name)
        wheel = wheels.get(name)
        found = str(wheel.version) if wheel else installed(name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(Violation(line, why + _lacking(wanted, wheel, found)))
        elif wheel:
            taken[name] = wheel
            further = (each for each in wheel.requires if _holds(each, wanted.extras))
            waiting.extend((each, line, f"{wheel.path.name} needs a package that is not there: ") for each in further)
    if wrong:
        raise Invalid.of(wrong[:20], code="invalid_data")
    _check_together(taken.values())
    return list(taken.values())


def unpack(wheels: Iterable[Wheel], target: Path) -> None:
    """Writes their files below `target` as an installer would, scripts left out. Where two have the same file, the later one's stays."""
    left = archive.MAX_BYTES
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel.path) as opened:
                for name, place in wheel.places.items():
                    (target / place).unlink(missing_ok=True)
                    left -= archive.write(opened, opened.getinfo(name), target / place, left)
        except archive.BROKEN as error:
            raise _wrong(wheel.path, f"cannot be unpacked ({error}); download it again") from error


def _pinned(pinned: Pinned) -> Requirement:
    try:
        return Requirement(f"{pinned.package}=={pinned.version}")
    except ValueError as error:
        words = f"{pinned.package}=={pinned.version} is no package and version; write name==1.2.3"
        raise Invalid.of([Violation(f"{REQUIREMENTS}, line {pinned.line}", words)], code="invalid_data") from error


def _lacking(wanted: Requirement, wheel: Wheel | None, found: str | None) -> str:
    named = f"{wanted.name}{wanted.specifier}"
    if wheel:
        return f"{named} is due, and {FOLDER}/{wheel.path.name} is another version; bring that version's wheel"
    here = f"which has {wanted.name} {found}" if found else f"which has no {wanted.name}"
    return f"{named} is not among the model's wheels, nor in the platform, {here}; bring its wheel, as lepton model push does"


def _holds(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether it is due on this machine, for any of the extras that were asked for."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def _check_together(wheels: Iterable[Wheel]) -> None:
    size, files = sum(wheel.size for wheel in wheels), {place: wheel for wheel in wheels for place in wheel.places.values()}
    if size > archive.MAX_BYTES:
        words = f"the wheels unpack to {size >> 20} MiB together; at most {archive.MAX_BYTES >> 20} MiB are taken"
        raise Invalid(words, code="too_large")
    for folder in {place.rpartition("/")[0] for place in files}:
        while folder:
            if folder in files:
                raise _wrong(files[folder].path, f"has a file {folder[:200]}, which is a folder as well")
            folder = folder.rpartition("/")[0]


def _read(paths: Sequence[Path]) -> dict[str, Wheel]:
    wheels: dict[str, Wheel] = {}
    wrong: list[Violation] = []
    left = _MAX_FILES
    for path in paths:
        try:
            wheel = _wheel(path, left)
        except Invalid as error:
            wrong += error.errors or [Violation(f"{FOLDER}/{path.name}", error.detail)]
            continue
        left -= len(wheel.places)
        if wheel.name in wheels:
            wrong.append(Violation(f"{FOLDER}/{path.name}", f"{wheel.name} is there twice; leave one of its wheels out"))
        wheels[wheel.name] = wheel
    if wrong:
        raise Invalid.of(wrong[:20], code="invalid_data")
    return wheels


def _wheel(path: Path, most_files: int) -> Wheel:
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except ValueError as error:
        raise _wrong(path, "is no name of a wheel, such as name-1.0-py3-none-any.whl") from error
    if not tags & _fitting():
        words = f"does not fit this platform, CPython {PYTHON} on {PLATFORMS[0]}; take a wheel for that one, or for any"
        raise _wrong(path, words)
    archive.check_end(path, most_files, _MAX_DIRECTORY_BYTES)
    try:
        with zipfile.ZipFile(path) as opened:
            entries = {entry.filename: entry for entry in opened.infolist() if not entry.is_dir()}
            _check(path, opened.infolist(), most_files)
            info = _info(path, entries)
            requires = _requires(path, opened.read(info + "/METADATA"), name, version)
    except archive.BROKEN as error:
        raise _wrong(path, f"is no wheel that can be read ({error}); download it again") from error
    data = info.removesuffix(".dist-info") + ".data"
    places = {name: place for name in entries if (place := _place(name, data))}
    return Wheel(path, name, version, requires, places, sum(entries[name].file_size for name in places))


def _check(path: Path, entries: Sequence[zipfile.ZipInfo], most_files: int) -> None:
    if len(entries) > most_files:
        raise _wrong(path, f"has {len(entries)} files; all wheels together may have {_MAX_FILES}")
    if sum(entry.file_size for entry in entries) > archive.MAX_BYTES:
        raise _wrong(path, f"unpacks to more than {archive.MAX_BYTES >> 20} MiB, as many as are taken")
    if len({entry.filename for entry in entries}) < len(entries):
        raise _wrong(path, "has the same file twice")
    for entry in entries:
        if words := _unsafe(entry.orig_filename.removesuffix("/")) or archive.unusual(entry) * (not entry.is_dir()):
            raise _wrong(path, f"{entry.orig_filename[:200]!r} in it {words}")


def _unsafe(name: str) -> str:
    parts = name.split("/")
    plain = len(name) <= 500 and len(parts) <= 30 and name.isprintable() and "\\" not in name
    if not plain or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        return "leads out of its folder or has a name that no file should have"
    return ""


def _info(path: Path, entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder that says what the wheel is."""
    found = {name.partition("/")[0] for name in entries if name.partition("/")[0].endswith(".dist-info")}
    if len(found) != 1 or not all(f"{folder}/{name}" in entries for folder in found for name in ("METADATA", "WHEEL")):
        raise _wrong(path, "must have one folder .dist-info with METADATA and WHEEL; pack it as a wheel again")
    (info,) = found
    if entries[info + "/METADATA"].file_size > _MAX_METADATA_BYTES:
        raise _wrong(path, f"its METADATA is larger than {_MAX_METADATA_BYTES >> 20} MiB")
    return info


def _requires(path: Path, content: bytes, name: str, version: Version) -> list[Requirement]:
    """What it needs, once it is what its name says."""
    said: RawMetadata = parse_email(content)[0]
    try:
        if canonicalize_name(said.get("name", "")) != name or Version(said.get("version", "")) != version:
            words = f"holds {said.get('name', 'nothing')[:100]} {said.get('version', '')[:100]}; give it the name of what it holds"
            raise _wrong(path, words)
        if not SpecifierSet(said.get("requires_python", "")).contains(PYTHON, prereleases=True):
            raise _wrong(path, f"is for Python {said['requires_python'][:100]}; this platform runs {PYTHON}")
        if len(said.get("requires_dist", [])) > _MAX_REQUIRES:
            raise _wrong(path, f"needs {len(said['requires_dist'])} packages; at most {_MAX_REQUIRES} are taken")
        if any(len(each) > _LONGEST_REQUIRE for each in said.get("requires_dist", [])):
            raise _wrong(path, f"needs a package in more than {_LONGEST_REQUIRE} characters")
        requires = [Requirement(each) for each in said.get("requires_dist", [])]
        for each in requires:
            _holds(each, ())
        return requires
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"says in METADATA what cannot be understood ({str(error)[:200]}); pack it anew") from error


def _place(name: str, data: str) -> str:
    """Where an installer puts a file that is imported; empty for scripts, headers and the like."""
    first, _, rest = name.partition("/")
    if first != data:
        return name
    scheme, _, place = rest.partition("/")
    return place if scheme in _IMPORTED else ""


@cache
def _fitting() -> frozenset[Tag]:
    return frozenset(sys_tags())


def _wrong(path: Path, words: str) -> Invalid:
    return Invalid.of([Violation(f"{FOLDER}/{path.name}", words)], code="invalid_data")
