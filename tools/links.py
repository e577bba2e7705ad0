"""Finds links in Markdown files that lead to no file of the repository. Knows nothing of the web."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from tools.lock_files import ROOT

LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
HEADING = re.compile(r"^#+\s+(.+?)\s*#*$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """A file's headings, as browsers name them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


def broken(files: Iterable[Path]) -> list[str]:
    """One line a dead link: file, and where it leads."""
    found = []
    for file in files:
        for link in LINK.findall(CODE.sub("", file.read_text()) if file.is_file() else ""):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (file.parent / name).resolve() if name else file
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                found.append(f"{file.relative_to(ROOT)}: {link}")
    return found


def main() -> str | None:
    folders = ("docs", "libs", "services", "tools", "examples", "k8s", "tests")
    files = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    dead = broken(files)
    return "\n".join(["Links that lead nowhere:", *dead]) if dead else None


if __name__ == "__main__":
    sys.exit(main())
