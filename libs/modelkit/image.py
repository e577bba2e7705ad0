"""What packages a model's own code finds where it runs. Knows no model."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import platform_tags
from packaging.utils import canonicalize_name

PYTHON = platform.python_version()
# Of the wheels that fit this machine, the best first; but linux_x86_64, which says nothing of the C library and no index takes, is last.
PLATFORMS = tuple(sorted(platform_tags(), key=lambda tag: tag.startswith("linux_")))


def installed(name: str) -> str | None:
    """A package's version in this environment; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def packages(lock: Path | None = None) -> Mapping[str, str]:
    """Version by package: of this environment, or of one that is made from a lock on the same kind of machine with the same Python."""
    if lock is None:
        return {canonicalize_name(each.name): each.version for each in metadata.distributions() if each.name}
    lines = [line.rstrip("\\ ") for line in lock.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    pinned = [Requirement(line) for line in lines]
    due = [each for each in pinned if each.marker is None or each.marker.evaluate()]
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in due}
