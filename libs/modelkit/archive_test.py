"""Archives that mean harm are refused in words, and leave nothing outside of their folder."""

import io
import struct
import zipfile
from pathlib import Path

import pytest

from libs.errors import Invalid
from libs.modelkit import archive


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return data.getvalue()


def linked() -> bytes:
    data, entry = io.BytesIO(), zipfile.ZipInfo("model.py")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(data, "w") as opened:
        opened.writestr(entry, "/etc/passwd")
    return data.getvalue()


def early(content: bytes) -> bytes:
    """The directory is said to lie further back than it does."""
    return content[:-6] + struct.pack("<L", struct.unpack("<L", content[-6:-2])[0] + 9) + content[-2:]


HARM = {
    "no zip": (b"x" * 100, "no ZIP"),
    "empty": (b"", "no ZIP"),
    "cut off": (zipped({"model.py": b"x" * 1000})[:-30], "no ZIP"),
    "no file": (zipped({"folder/": b""}), "no file"),
    "leads out": (zipped({"../model.py": b""}), "begin with"),
    "absolute": (zipped({"/model.py": b""}), "begin with"),
    "backslash": (zipped({"a\\model.py": b""}), "begin with"),
    "hidden": (zipped({".env": b""}), "begin with"),
    "link": (linked(), "a link"),
    "unusual": (zipped({"model.py": b"x" * 100}, zipfile.ZIP_LZMA), "unusual method"),
    "many": (zipped({f"f{n}": b"" for n in range(120)}), "at most 95"),
    "a million": (zipped({})[:-22] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 64 << 20, 0, 0), "at most 95"),
    "twice": (zipped({"a": b"", "A": b""}), "twice"),
    "file and folder": (zipped({"a": b"", "a/b": b""}), "a file and a folder"),
    "before its beginning": (early(zipped({"a": b""})), "begins before"),
    "damaged": (zipped({"a": b"x" * 100}, zipfile.ZIP_STORED).replace(b"xxxx", b"xyxx", 1), "CRC"),
}


@pytest.mark.parametrize(("content", "words"), HARM.values(), ids=HARM)
def test_harm_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "sent").write_bytes(content)
    with pytest.raises(Invalid) as raised:
        archive.unpack(tmp_path / "sent", tmp_path / "folder")
    assert words in raised.value.detail + " ".join(v.message for v in raised.value.errors)
    assert {path.name for path in tmp_path.iterdir()} <= {"sent", "folder"}


def test_a_bomb_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    content = bytearray(zipped({"a": bytes(4 << 20)}))
    (tmp_path / "honest").write_bytes(content)
    with pytest.raises(Invalid, match="1 MiB together"):
        archive.unpack(tmp_path / "honest", tmp_path / "one")
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<L", 10)  # the directory lies
    (tmp_path / "lying").write_bytes(content)
    with pytest.raises(Invalid):
        archive.unpack(tmp_path / "lying", tmp_path / "two")
    assert sum(path.stat().st_size for path in (tmp_path / "two").rglob("*")) <= 2 << 20


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(zipped({"model.py": b"code", "part/__init__.py": b""}))
    assert archive.unpack(tmp_path / "sent", tmp_path / "folder") == ["model.py", "part/__init__.py"]
    assert (tmp_path / "folder/model.py").read_bytes() == b"code"
