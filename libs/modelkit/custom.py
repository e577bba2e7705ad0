"""What the owner of a model wrote, as files: model.py, what it takes and gives, and the packages that it needs. Runs none of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.errors import Invalid, Violation
from libs.modelkit.naming import NAMES, named
from libs.modelkit.onnx_file import read_onnx
from libs.modelkit.signature import read_signature

FORMAT = 2
CODE, ONNX, SIGNATURE, REQUIREMENTS = "model.py", "model.onnx", "signature.json", "requirements.txt"
_MAX_TEXT_BYTES = 1 << 20
_MAX_REQUIREMENTS = 200
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,100}\s*(?:\[[A-Za-z0-9._, -]{0,200}\])?)\s*==\s*([A-Za-z0-9][A-Za-z0-9.!+_-]{0,100})")


@dataclass(frozen=True)
class Pinned:
    """A line of requirements.txt. `package`: its name, with what it has in square brackets."""

    line: int
    package: str
    version: str


def describe(folder: Path) -> dict[str, Any]:
    """The model.json of a folder that holds model.py, or else model.onnx. Raises `Invalid` where what it says cannot be used."""
    if not (folder / CODE).is_file():
        if (folder / ONNX).is_file():
            return _describe_onnx(folder)
        words = f"there is neither {CODE}, with a class Model that has load(self, folder) and predict(self, records), nor {ONNX}"
        raise Invalid(words, code="invalid_data")
    requirements(folder)
    signature = read_signature(_json(folder / SIGNATURE)) if (folder / SIGNATURE).is_file() else None
    return {"format": FORMAT, "kind": "code", "signature": signature.as_json() if signature else None}


def _describe_onnx(folder: Path) -> dict[str, Any]:
    signature, names = read_onnx(folder / ONNX), folder / NAMES
    signature, said = named(signature, _json(names)) if names.is_file() else (signature, {})
    return {"format": FORMAT, "kind": "onnx", "signature": signature.as_json(), **said}


def requirements(folder: Path) -> list[Pinned]:
    """What requirements.txt pins; raises `Invalid` for every line that pins no version."""
    path = folder / REQUIREMENTS
    lines = _text(path).splitlines() if path.is_file() else []
    said = {number: words for number, line in enumerate(lines, 1) if (words := line.partition("#")[0].strip())}
    if len(said) > _MAX_REQUIREMENTS:
        raise Invalid(f"{REQUIREMENTS} names {len(said)} packages; at most {_MAX_REQUIREMENTS} are taken", code="invalid_data")
    pinned = {number: _PINNED.fullmatch(words) for number, words in said.items()}
    wrong = [
        Violation(f"{REQUIREMENTS}, line {number}", f"'{said[number][:100]}' pins no version; write name==1.2.3")
        for number, match in pinned.items()
        if not match
    ]
    if wrong:
        raise Invalid.of(wrong[:20], code="invalid_data")
    return [Pinned(number, match[1], match[2]) for number, match in pinned.items() if match]


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{path.name} is no JSON: {error}", code="invalid_data") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise Invalid(f"{path.name} is larger than {_MAX_TEXT_BYTES >> 20} MiB", code="too_large")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"{path.name} is no text in UTF-8", code="invalid_data") from error
