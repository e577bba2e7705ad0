"""What is committed, and what must not be."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

from tools import links
from tools.lock_files import ROOT


@cache
def committed() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return [path for path in listed.split("\0") if path]


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_a_reader_finds(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_the_licence_is_the_one_that_the_project_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_nothing_generated_is_committed() -> None:
    generated = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", ".pyc", ".binpb")
    parts = {"build", "dist", "__pycache__", "node_modules", ".venv"}
    assert [path for path in committed() if path.endswith(generated) or parts & set(Path(path).parts[:-1])] == []


def test_no_lock_with_addresses_is_committed() -> None:
    assert [path for path in committed() if Path(path).name in {"uv.lock", "poetry.lock", "Pipfile.lock"}] == []


def test_every_package_has_an_init() -> None:
    """Without one import-linter and mypy pass a folder over, in silence."""
    python = {Path(path).parent for path in committed() if path.endswith(".py") and path.startswith(("libs/", "services/"))}
    folders = {folder for folder in python if not {"sdk", "testdata", "migrations"} & set(folder.parts)}
    assert sorted(str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()) == []


def test_links_in_the_documentation_lead_somewhere() -> None:
    assert links.broken([ROOT / path for path in committed() if path.endswith(".md")]) == []
