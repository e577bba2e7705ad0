"""The wheels of a model's requirements.txt: what the platform lacks, downloaded by pip for its Python and machine. Runs nothing of them."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leptonai._errors import InvalidInput, LeptonError

REQUIREMENTS, WHEELS = "requirements.txt", "wheels"
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*==\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,200}")
_NONE_FOUND = re.compile(r"No matching distribution found for (\S+)")
_SECONDS = 1800
_ADVICE = "bring wheels of your own: wheels=FOLDER, or --wheels FOLDER"


def may_lack(source: Any) -> bool:
    """Whether a model's folder has requirements and not the wheels for them."""
    folder = Path(source).expanduser() if isinstance(source, str | os.PathLike) else Path()
    return (folder / REQUIREMENTS).is_file() and not any((folder / WHEELS).glob("*.whl"))


def given_wheels(folder: str | os.PathLike[str]) -> Sequence[Path]:
    """Those of a folder."""
    found = sorted(Path(folder).expanduser().glob("*.whl"))
    if not found:
        raise InvalidInput(f"{folder} is no folder with wheels", "it takes files name-1.0-py3-none-any.whl, as pip download writes them")
    return found


@contextmanager
def downloaded(source: str | os.PathLike[str], runtime: Mapping[str, Any]) -> Iterator[Sequence[Path]]:
    """The wheels that are there for so long. runtime: `python`, `platforms` and `packages` of the platform."""
    requirements = Path(source).expanduser() / REQUIREMENTS
    lines = [line.partition("#")[0].strip() for line in requirements.read_text("utf-8", "replace").splitlines()]
    pins = {number: _PINNED.fullmatch(line) for number, line in enumerate(lines, 1) if line}
    there = _there(runtime)
    pinned = {_normal(pin[1]): (number, pin[2]) for number, pin in pins.items() if pin}
    with tempfile.TemporaryDirectory(prefix="lepton-wheels-") as place:
        # A line that pins nothing is refused by the platform, which knows its number.
        if all(pins.values()) and any(version not in _spellings(there.get(name)) for name, (_, version) in pinned.items()):
            _download(requirements, runtime, there, pinned, Path(place))
        yield sorted(Path(place, WHEELS).glob("*.whl"))


def _there(runtime: Mapping[str, Any]) -> Mapping[str, str]:
    """Version by package in the platform's image. What it says becomes names of files and arguments of pip, and so is looked at."""
    try:
        there = {package["name"]: package["version"] for package in runtime["packages"]}
        words = [runtime["python"], *runtime["platforms"], *there, *there.values()]
        if re.match(r"\d+\.\d+", runtime["python"]) and runtime["platforms"] and all(_WORD.fullmatch(word) for word in words):
            return there
    except (KeyError, TypeError):
        pass
    raise LeptonError("the platform did not say which packages its models find; it may be older than this client; " + _ADVICE)


def _download(
    requirements: Path, runtime: Mapping[str, Any], there: Mapping[str, str], pinned: Mapping[str, tuple[int, str]], place: Path
) -> None:
    """What the platform has is shown to pip as wheels without content, so that neither they nor what they need is downloaded."""
    python, platforms = runtime["python"], runtime["platforms"]
    major, minor = python.split(".")[:2]
    tag = f"cp{major}{minor}-cp{major}{minor}-{platforms[0]}"
    names = [_empty_wheel(place, name, version, tag) for name, version in there.items()]
    constraints = place / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in there.items() if name not in pinned))
    command = [
        *_pip(), "download", "--progress-bar=off", "--no-input", "--disable-pip-version-check", "--only-binary=:all:",
        "--implementation=cp", f"--python-version={python}", *(f"--platform={each}" for each in platforms),
        f"--find-links={place}", f"--constraint={constraints}", f"--requirement={requirements}", f"--dest={place / WHEELS}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"pip did not download the wheels of {requirements} in {_SECONDS} s", f"try again, or {_ADVICE}") from None
    if done.returncode:
        raise _failure(requirements, f"CPython {python} on {platforms[0]}", pinned, done.stdout)
    for name in names:
        (place / WHEELS / name).unlink(missing_ok=True)


def _failure(requirements: Path, machine: str, pinned: Mapping[str, tuple[int, str]], said: str) -> InvalidInput:
    if (found := _NONE_FOUND.search(said)) and "Retrying" not in said:  # an index that is away has no package either
        name = _normal(re.split(r"[\[=<>!~;(]", found[1])[0])
        line = f", line {pinned[name][0]}" if name in pinned else ""
        return InvalidInput(
            f"{requirements}{line}: there is no wheel of {found[1]} for {machine}",
            f"pin a version that has one (sources are not built), or {_ADVICE}",
        )
    return InvalidInput(
        f"pip could not download the wheels of {requirements}: {said.strip()[-1500:] or 'it said nothing'}",
        f"what the platform has in another version than you need, pin as well; or {_ADVICE}",
    )


def _empty_wheel(place: Path, name: str, version: str, tag: str) -> str:
    """Its build number makes it the first choice among wheels of one version."""
    stem = f"{name.replace('-', '_')}-{version}"
    file = f"{stem}-999999-{tag}.whl"
    with zipfile.ZipFile(place / file, "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return file


def _pip() -> list[str]:
    """How pip is run: this Python's own, else the one that it would make for a new environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]
    found = importlib.util.find_spec("ensurepip")
    bundled = sorted(Path(found.origin).parent.glob("_bundled/pip-*.whl")) if found and found.origin else []
    if not bundled:
        raise InvalidInput(f"{sys.executable} has no pip, which downloads the wheels of {REQUIREMENTS}", f"install pip, or {_ADVICE}")
    return [sys.executable, "-P", str(bundled[-1] / "pip")]


def _spellings(version: str | None) -> Sequence[str]:
    """2.9.1+cpu is meant by 2.9.1 as well."""
    return (version, version.partition("+")[0]) if version else ()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
