"""The checks of `make lint`: style, types, imports, protos, or those of them that are named on the command line.

Runs all of them, says which failed, and changes nothing.
"""

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from tools import proto

ROOT = proto.ROOT
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> bool:
    return subprocess.run([str(BIN / command[0]), *map(str, command[1:])], cwd=ROOT, check=False).returncode == 0


def git(*arguments: str) -> bytes | None:
    """What git says, or None where it fails: outside a repository, or for a name that isn't there."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def style() -> bool:
    checked = run("ruff", "check", "--quiet", ".")
    return run("ruff", "format", "--check", "--quiet", ".") and checked


def types() -> bool:
    return run("mypy")


def imports() -> bool:
    return run("lint-imports", "--no-logo")


def protos() -> bool:
    proto.main()
    return run("buf", "lint", proto.DESCRIPTORS, "--path", "lepton") and breaking()


def breaking() -> bool:
    """Against what was promised last: the newest tag; before the first, on a branch, what main has."""
    against = promised()
    archive = against and git("archive", against, "proto")
    if not archive:
        print("No tag to compare with, and nothing that main has not: breaking changes not checked.")
        return True
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        before = Path(folder) / "before.binpb"
        proto.describe(Path(folder) / "proto", before)
        print(f"Breaking changes against {against}:", flush=True)
        return run("buf", "breaking", proto.DESCRIPTORS, "--against", before, "--path", "lepton")


def promised() -> str | None:
    tag = git("describe", "--tags", "--abbrev=0")
    if tag:
        return tag.decode().strip()
    head = git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        base = git("merge-base", "HEAD", main)
        if base and base != head:
            return base.decode().strip()
    return None


CHECKS: dict[str, Callable[[], bool]] = {"style": style, "types": types, "imports": imports, "protos": protos}


def main(names: list[str]) -> str | None:
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        return f"No check is called {', '.join(unknown)}. There are: {', '.join(CHECKS)}."
    failed = []
    for name in names or list(CHECKS):
        print(f"== {name}", flush=True)
        if not CHECKS[name]():
            failed.append(name)
    return f"Failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
