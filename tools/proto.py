"""Generates the message types and service stubs of proto/ into build/proto, and one descriptor set with its comments.

Knows protoc only; what the options mean is libs/rpc's affair. Does nothing when nothing changed. A process that imports the
types meanwhile sees each file old or new, never torn or missing.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "build" / "proto"
DESCRIPTORS = TARGET / "lepton" / "descriptors.binpb"
# The inference protocol's, of which types are made where they are used (libs/inference).
INFERENCE = "inference"
STAMP = ".digest"


def sources(folder: Path = SOURCE) -> list[Path]:
    return sorted(folder.glob("lepton/**/*.proto"))


def digest() -> str:
    """Of everything that the types are made from."""
    seen = hashlib.sha256(f"{version('grpcio-tools')} {version('googleapis-common-protos')}".encode())
    for path in [Path(__file__), *sorted(SOURCE.rglob("*.proto"))]:
        seen.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return seen.hexdigest()


def protoc(source: Path, *outputs: str, files: Sequence[Path] = ()) -> None:
    """Runs it over a folder of protos, or files in it; raises SystemExit after protoc's own words when a file is wrong."""
    from google.api import annotations_pb2  # here, so that a run with nothing to do takes no time
    from grpc_tools import protoc

    googleapis = Path(annotations_pb2.__file__).parents[2]
    includes = [f"-I{source}", f"-I{Path(protoc.__file__).parent / '_proto'}", f"-I{googleapis}"]
    if protoc.main(["protoc", *includes, *outputs, *map(str, files or sources(source))]) != 0:
        raise SystemExit("protoc refused the files above")


def describe(source: Path, target: Path) -> None:
    """Writes one descriptor set of a folder of protos, with what they import and their comments."""
    protoc(source, "--include_imports", "--include_source_info", f"--descriptor_set_out={target}")


def generate(target: Path) -> None:
    """Fills an empty folder."""
    protoc(SOURCE, f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}")
    describe(SOURCE, target / "lepton" / DESCRIPTORS.name)
    inference = SOURCE / INFERENCE
    protoc(inference, f"--descriptor_set_out={target / 'lepton' / INFERENCE}.binpb", files=sorted(inference.glob("*.proto")))
    for folder in [target / "lepton", *(path for path in (target / "lepton").rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()


def replace(old: Path, new: Path) -> None:
    """Makes `old` equal to `new`, file by file; what did not change is not touched."""
    kept = set()
    for source in sorted(path for path in new.rglob("*") if path.is_file()):
        path = old / source.relative_to(new)
        kept.add(path)
        if path.is_file() and path.read_bytes() == source.read_bytes():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, path)
    for path in old.rglob("*"):
        if path.is_file() and path not in kept and path.suffix != ".pyc":
            path.unlink(missing_ok=True)
    for folder in sorted((path for path in old.rglob("*") if path.is_dir()), reverse=True):
        if folder.name != "__pycache__" and not any(path.name != "__pycache__" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    wanted = digest()
    stamp = TARGET / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".proto-", dir=TARGET.parent) as folder:
        generate(Path(folder))
        replace(TARGET, Path(folder))
        last = Path(folder) / STAMP
        last.write_text(wanted)
        os.replace(last, stamp)


if __name__ == "__main__":
    main()
