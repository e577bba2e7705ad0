"""Reads the locks in requirements/ and the dependency groups they are made from. Knows no network and no uv."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
GROUPS = ("gateway", "control", "data", "serving", "ml", "worker", "standalone", "client", "build", "dev")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def normalised(requirement: str) -> str:
    """The distribution that a requirement names, as registries compare names."""
    match = NAME.match(requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def pins(group: str) -> dict[str, set[str]]:
    """Versions by name; more than one where platforms or Pythons differ."""
    found: dict[str, set[str]] = {}
    for line in (REQUIREMENTS / f"{group}.txt").read_text().splitlines():
        if "==" in line and NAME.match(line):
            requirement, version = re.split("==", line, maxsplit=1)
            found.setdefault(normalised(requirement), set()).add(re.split(r"[ ;\\]", version)[0])
    return found


def declared(group: str) -> set[str]:
    """Names that a group of pyproject.toml asks for, with the groups it includes."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    names: set[str] = set()
    for item in groups[group]:
        names |= declared(item["include-group"]) if isinstance(item, dict) else {normalised(item)}
    return names
