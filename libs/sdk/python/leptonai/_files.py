"""Files to send and to keep: bodies that can be read again, folders of pictures, downloads that appear whole or not at all."""

import hashlib
import io
import json
import os
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from leptonai._errors import InvalidInput, LeptonError
from leptonai._tabular import frame_to_table, is_frame
from leptonai._transport import CHUNK, Content

PICTURES = (".png", ".jpg", ".jpeg")
# What a platform takes of a model that is brought.
MODEL_FILES, MODEL_BYTES = 95, 1 << 30
_MAGIC = ((b"PAR1", "data.parquet"), (b"PK\x03\x04", "data.zip"), (b"{", "data.jsonl"))


def content_of(source: Any, filename: str | None) -> tuple[Content | bytes, str]:
    """What to upload and under which file name. source: path of a file or of a folder of pictures, bytes, or a pandas frame."""
    if is_frame(source):
        data, name = frame_to_table(source)
        return data, filename or name
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return data, filename or next((name for magic, name in _MAGIC if data.startswith(magic)), "data.csv")
    if not isinstance(source, str | os.PathLike):
        raise InvalidInput(f"cannot upload {type(source).__name__}", "it takes a path, bytes, or a pandas DataFrame")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return zip_of(path), filename or f"{path.resolve().name}.zip"
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not path.is_file():  # a pipe has neither length nor beginning
                return file.read(), filename or path.name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(
            f"cannot read {path}: {reason}", "give the path of a file, or of a folder with a folder of pictures a class"
        ) from None
    return Content(lambda: path.open("rb"), size), filename or path.name


def sha256_of(content: Content | bytes) -> str:
    """64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open() as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def zip_of(folder: Path) -> Content:
    """A folder with a folder of PNG or JPEG files a class, as a ZIP: the same files give the same bytes. Hidden files are left out."""
    files = sorted(
        file for file in folder.rglob("*") if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    strange = [file for file in files if file.suffix.lower() not in PICTURES]
    if strange:
        raise InvalidInput(f"{strange[0]} is not a picture", "the folder takes PNG and JPEG files only, in a folder a class")
    loose = [file for file in files if len(file.relative_to(folder).parts) < 2]
    if loose:
        raise InvalidInput(f"{loose[0]} lies in no class folder", f"move it to {folder}/<class>/{loose[0].name}")
    if not files:
        raise InvalidInput(f"{folder} holds no pictures", "it takes PNG and JPEG files, in a folder a class")
    return _packed({file.relative_to(folder).as_posix(): file for file in files})


def model_zip(
    source: Any, signature: Mapping[str, Any] | None, called: Mapping[str, Sequence[str]], wheels: Sequence[Path] = ()
) -> Content:
    """A folder with model.py, or an ONNX file, as a ZIP: the same files give the same bytes. What is hidden or cached is left out."""
    folder = Path(source).expanduser() if isinstance(source, str | os.PathLike) else None
    if folder is not None and folder.is_file() and folder.suffix == ".onnx":
        if signature is not None:
            raise InvalidInput("an ONNX file says itself what it takes and gives", "leave the signature out; features and classes name it")
        if wheels:
            raise InvalidInput(f"wheels are for code, and {folder} is an ONNX file", "leave them out")
        return _packed({"model.onnx": folder} | ({"names.json": json.dumps(called).encode()} if called else {}))
    if called:
        raise InvalidInput(f"{' and '.join(called)} are of ONNX files, and {source} is none", "say it in the folder's signature.json")
    if folder is None or not any((folder / name).is_file() for name in ("model.py", "model.onnx")):
        raise InvalidInput(
            f"{source} is no folder with a model.py", "it holds a class Model with load(self, folder) and predict(self, records)"
        )
    names = {file.relative_to(folder): file for file in sorted(folder.rglob("*")) if file.is_file()}
    hidden = [name for name in names if any(part.startswith(".") or part == "__pycache__" for part in name.parts)]
    files: dict[str, Path | bytes] = {name.as_posix(): file for name, file in names.items() if name not in hidden}
    files |= {f"wheels/{wheel.name}": wheel for wheel in wheels}
    if signature is not None:
        files["signature.json"] = json.dumps(signature).encode()
    if len(files) > MODEL_FILES:
        many = f"{folder} holds {len(files) - len(wheels)} files" + (f", and {len(wheels)} wheels come with them" if wheels else "")
        raise InvalidInput(many, f"at most {MODEL_FILES} are taken; leave out what the model does not read")
    if sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()) > MODEL_BYTES:
        raise InvalidInput(
            f"the files of {folder}, and their wheels, are larger than {MODEL_BYTES >> 20} MiB together", "no larger model is taken"
        )
    return _packed(files)


def _packed(files: Mapping[str, Path | bytes]) -> Content:
    with tempfile.TemporaryFile() as spool:
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:
            for name, file in files.items():
                archive.writestr(zipfile.ZipInfo(name), file if isinstance(file, bytes) else file.read_bytes())
        spool.flush()
        kept = os.dup(spool.fileno())
        content = Content(lambda: _from_start(kept), os.fstat(kept).st_size)
    weakref.finalize(content, os.close, kept)
    return content


def _from_start(kept: int) -> BinaryIO:
    again = os.fdopen(os.dup(kept), "rb")
    again.seek(0)
    return again


@contextmanager
def saved(target: Path, digest: str = "") -> Iterator[io.BufferedWriter]:
    """Writes beside `target` and puts the file there when all went well. `digest` ("sha256:…") is checked where given."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
    except OSError as error:
        raise InvalidInput(f"cannot write {target}: {error.strerror}", "give a folder that you may write to") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        if digest.startswith("sha256:") and digest != f"sha256:{_sha256(Path(name))}":
            raise LeptonError(f"{target.name} arrived damaged: its digest is not {digest}; download it again")
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as error:
        raise LeptonError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, path: str) -> Path:
    """`folder`/`path`, where the path may not lead out of the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path or ":" in parts[0]:
        raise LeptonError(f"the platform named a file {path!r}, which would lie outside of {folder}; nothing was written")
    return folder.joinpath(*parts)
