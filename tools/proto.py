"""Generates the message types and service stubs of proto/ into build/proto, and one descriptor set with its comments.

Knows protoc only; what the options mean is libs/rpc's affair.
"""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "build" / "proto"
DESCRIPTORS = TARGET / "lepton" / "descriptors.binpb"


def generate() -> None:
    """Replaces build/proto; raises SystemExit with protoc's own words when a file is wrong."""
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    sources = sorted(str(path) for path in SOURCE.rglob("*.proto"))
    googleapis = Path(annotations_pb2.__file__).parents[2]
    includes = [f"-I{SOURCE}", f"-I{files('grpc_tools') / '_proto'}", f"-I{googleapis}"]
    outputs = [f"--python_out={TARGET}", f"--pyi_out={TARGET}", f"--grpc_python_out={TARGET}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        raise SystemExit("protoc refused the files above")
    for folder in (path for path in (TARGET / "lepton").rglob("*") if path.is_dir()):
        (folder / "__init__.py").touch()
    (TARGET / "lepton" / "__init__.py").touch()
    described = ["--include_imports", "--include_source_info", f"--descriptor_set_out={DESCRIPTORS}"]
    if protoc.main(["protoc", *includes, *described, *sources]) != 0:
        raise SystemExit("protoc refused the files above")


if __name__ == "__main__":
    sys.exit(generate())
