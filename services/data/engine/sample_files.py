"""Small files for the engine's tests: right ones, and one for each way to be wrong."""

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True)
class Broken:
    """A file, and what must be said of it."""

    name: str
    file_name: str
    content: bytes
    code: str = "invalid_data"
    # Where, exactly; None: anywhere.
    field: str | None = None
    # Parts of the message.
    words: tuple[str, ...] = ()


def picture(size: tuple[int, int] = (8, 8), colour: int = 128, form: str = "PNG", mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, form)
    return buffer.getvalue()


def zipped(entries: dict[str, bytes], *, change: Callable[[zipfile.ZipInfo], None] | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


ALBUM = {"cat/1.png": picture(), "cat/2.png": picture(colour=7), "dog/1.jpg": picture(form="JPEG")}


def _symlink(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def _encrypted() -> bytes:
    """Flag bit 0 in both headers, as an archive with a password has it."""
    content = bytearray(zipped({"cat/1.png": picture()}))
    content[6] |= 1
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1
    return bytes(content)


def _overlapping() -> bytes:
    """Two directory entries for the same bytes."""
    content = zipped({"cat/1.png": picture(), "dog/1.png": picture(colour=9)})
    first, second = content.index(b"PK\x01\x02"), content.rindex(b"PK\x01\x02")
    changed = bytearray(content)
    changed[second + 42 : second + 46] = changed[first + 42 : first + 46]
    # The local header must name the same file, or Python notices by itself.
    return bytes(changed)


def _understated() -> bytes:
    """The directory says 10 bytes, the entry unpacks to many."""
    content = bytearray(zipped({"cat/1.png": b"\x00" * 100_000, "dog/1.png": picture()}))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(content)


def _backslash() -> bytes:
    return zipped({"cat/1.png": picture()}).replace(b"cat/1.png", b"cat\\1.png")


def _nul_in_name() -> bytes:
    return zipped({"cat/1.pngx": picture()}).replace(b"cat/1.pngx", b"cat/1\x00.png")


def _picture_bomb() -> bytes:
    """A PNG of 60000 × 60000 pixels by its header, in a few bytes."""
    small = bytearray(picture())
    small[16:24] = struct.pack(">II", 60000, 60000)
    import zlib

    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


def _wide_parquet() -> bytes:
    """A few kilobytes that promise four billion cells."""
    return parquet({f"c{number}": pa.array([0.0] * 1000) for number in range(50)}, compression="zstd")


BROKEN: tuple[Broken, ...] = (
    Broken("empty", "a.csv", b"", words=("the file is empty",)),
    Broken("blank lines", "a.csv", b"\n\n  \n", words=("nothing but blank lines",)),
    Broken("header only", "a.csv", b"a,b\n", field="line 2", words=("no row under it",)),
    Broken("header only without line end", "a.csv", b"a,b", field="line 2", words=("no row under it",)),
    Broken("short row", "a.csv", b"a,b,c\n1,2,3\n4,5\n6,7,8\n", field="line 3", words=("expected 3 values", "found 2")),
    Broken("long row", "a.csv", b"a,b\n1,2\n3,4,5\n", field="line 3", words=("expected 2 values", "found 3", "double quotes")),
    Broken("trailing comma", "a.csv", b"a,b\n1,2,\n3,4\n", field="line 2", words=("found 3",)),
    Broken("ragged after a quoted line end", "a.csv", b'a,b\n"x\ny",2\n3\n', field="line 4", words=("found 1",)),
    Broken("ragged after blank lines", "a.csv", b"a,b\n\n\n1,2\n3\n4,5\n", field="line 5", words=("found 1",)),
    Broken("cut off in a row", "a.csv", b"a,b,c\n1,2,3\n4,5", field="line 3", words=("cut off",)),
    Broken("quote never closed", "a.csv", b'a,b\n1,"x\n2,y\n3,z\n', field="line 2", words=("never ends",)),
    Broken("text after a closing quote", "a.csv", b'a,b\n1,"x"y\n', field="line 2", words=("closing double quote",)),
    Broken("quoted header cut off", "a.csv", b'"a,b\n1,2\n', field="line 1", words=("header",)),
    Broken("NUL byte", "a.csv", b"a,b\n1,2\n3,\x004\n", field="line 3", words=("NUL",)),
    Broken("binary named csv", "a.csv", bytes(range(256)) * 4, code="unsupported_media_type", words=("binary",)),
    Broken("Latin-1", "a.csv", "a,b\n1,2\n3,é\n".encode("latin-1"), field="line 3", words=("0xE9", "UTF-8")),
    Broken("cut in a character", "a.csv", "a\nüü".encode()[:-1], field="line 2", words=("cut off",)),
    Broken("UTF-16", "a.csv", "a,b\n1,2\n".encode("utf-16"), words=("UTF-16",)),
    Broken("header twice", "a.csv", b"a,b,a\n1,2,3\n", field="line 1, column 3", words=("'a' is there twice", "columns 1 and 3")),
    Broken("header twice but for case", "a.csv", b"a,A\n1,2\n", field="line 1, column 2", words=("differ only in case",)),
    Broken("column without a name", "a.csv", b"a,,c\n1,2,3\n", field="line 1, column 2", words=("no name",)),
    Broken("index of pandas", "a.csv", b",a\n0,1\n", field="line 1, column 1", words=("index=False",)),
    Broken("reserved name", "a.csv", b"__lepton_row,b\n1,2\n", field="line 1, column 1", words=("__lepton_",)),
    Broken("long name", "a.csv", b"a" * 300 + b",b\n1,2\n", field="line 1, column 1", words=("300 characters",)),
    Broken("line end in a name", "a.csv", b'"a\nb",c\n1,2\n', field="line 1, column 1", words=("line end",)),
    Broken(
        "too many columns", "a.csv", b",".join(b"c%d" % n for n in range(5000)) + b"\n" + b",".join([b"1"] * 5000), "too_large", "line 1"
    ),
    Broken("value too long", "a.csv", b'a,b\n1,"' + b"x" * 9_000_000 + b'"\n', field="line 2", words=("longer than",)),
    Broken("web page", "a.csv", b"<!DOCTYPE html><html></html>", "unsupported_media_type", words=("web page",)),
    Broken("gzip", "a.csv.gz", b"\x1f\x8b\x08\x00" + b"\x00" * 20, "unsupported_media_type", words=("gzip", "unpack")),
    Broken("pickle", "a.pkl", b"\x80\x04\x95\x00\x00\x00.", "unsupported_media_type", words=("pickle", "Parquet")),
    Broken("single picture", "a.png", picture(), "unsupported_media_type", words=("PNG", "ZIP")),
    Broken("PDF", "a.pdf", b"%PDF-1.7\n", "unsupported_media_type", words=("PDF",)),
    Broken(
        "Excel", "a.xlsx", zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "unsupported_media_type", words=("CSV",)
    ),
    Broken("text named parquet", "a.parquet", b"a,b\n1,2\n", words=("PAR1",)),
    Broken("text named zip", "a.zip", b"a,b\n1,2\n", words=("'PK'",)),
    Broken("JSON array", "a.json", b'[{"a": 1}]', "unsupported_media_type", words=("one object a line",)),
    Broken("JSON over many lines", "a.json", b'{\n  "a": 1\n}\n', field="line 1", words=("one line",)),
    Broken("broken JSON line", "a.jsonl", b'{"a": 1}\n{"a": }\n', field="line 2", words=("not valid JSON",)),
    Broken("cut JSON line", "a.jsonl", b'{"a": 1}\n{"a": 2, "b', field="line 2", words=("cut off",)),
    Broken("JSON line is a list", "a.jsonl", b'{"a": 1}\n[1, 2]\n', field="line 2", words=("a list",)),
    Broken("nested JSON", "a.jsonl", b'{"a": 1}\n{"a": {"b": 2}}\n', field="line 2", words=("flatten",)),
    Broken("NaN in JSON", "a.jsonl", b'{"a": NaN}\n', field="line 1", words=("not valid JSON",)),
    Broken("empty JSON objects", "a.jsonl", b"{}\n{}\n", words=("empty",)),
    Broken("JSON key without a name", "a.jsonl", b'{"": 1}\n', words=("no name",)),
    Broken("JSON keys differ in case", "a.jsonl", b'{"a": 1, "A": 2}\n', words=("differ only in case",)),
    Broken("lone surrogate", "a.jsonl", b'{"a": "\\ud800"}\n', field="line 1", words=("not valid JSON",)),
    Broken("cut Parquet", "a.parquet", parquet({"a": [1, 2, 3]})[:-20], words=("cut off",)),
    Broken("damaged Parquet", "a.parquet", b"PAR1" + b"\x99" * 200 + b"PAR1", words=("damaged",)),
    Broken("Parquet of four bytes", "a.parquet", b"PAR1", words=("damaged",)),
    Broken("Parquet without rows", "a.parquet", parquet({"a": pa.array([], pa.int64())}), words=("no row",)),
    Broken("nested Parquet", "a.parquet", parquet({"a": [[1, 2], [3]]}), field="column 'a'", words=("not supported",)),
    Broken("bytes in Parquet", "a.parquet", parquet({"a": [b"x"]}), field="column 'a'", words=("ZIP",)),
    Broken("names twice in Parquet", "a.parquet", parquet({"a": [1], "A": [2]}), words=("differ only in case",)),
    Broken("Parquet that promises too much", "a.parquet", _wide_parquet(), "too_large", words=("promise",)),
    Broken("empty ZIP", "a.zip", zipped({}), words=("empty",)),
    Broken("cut ZIP", "a.zip", zipped(ALBUM)[:-30], words=("cut off",)),
    Broken("ZIP of a table", "a.zip", zipped({"data.csv": b"a,b\n1,2\n"}), "unsupported_media_type", words=("without the ZIP",)),
    Broken("name that leads out", "a.zip", zipped({**ALBUM, "../evil.png": picture()}), field="../evil.png", words=("leads out",)),
    Broken("name that leads out from within", "a.zip", zipped({"cat/../../x.png": picture()}), words=("leads out",)),
    Broken("absolute name", "a.zip", zipped({"/etc/cat.png": picture()}), words=("absolute",)),
    Broken("drive name", "a.zip", zipped({"C:/cat/1.png": picture()}), words=("absolute",)),
    Broken("backslash name", "a.zip", _backslash(), words=("backslash",)),
    Broken("NUL in a name", "a.zip", _nul_in_name(), words=("control characters",)),
    Broken("symlink", "a.zip", zipped({"cat/1.png": b"/etc/passwd"}, change=_symlink), field="cat/1.png", words=("link",)),
    Broken("encrypted", "a.zip", _encrypted(), words=("password",)),
    Broken("overlapping entries", "a.zip", _overlapping(), "too_large", words=("shares bytes",)),
    Broken("understated size", "a.zip", _understated(), words=()),
    Broken(
        "expands too far", "a.zip", zipped({f"cat/{n}.png": b"\x00" * 20_000_000 for n in range(4)}), "too_large", words=("times its size",)
    ),
    Broken("too deep", "a.zip", zipped({"a/b/c/1.png": picture(), "a/b/c/2.png": picture()}), words=("folders deep",)),
    Broken(
        "mixed depth", "a.zip", zipped({"cat/1.png": picture(), "x/dog/1.png": picture()}), field="x/dog/1.png", words=("folders deep",)
    ),
    Broken("no folder", "a.zip", zipped({"1.png": picture()}), field="1.png", words=("class is unknown",)),
    Broken("not a picture by name", "a.zip", zipped({**ALBUM, "cat/notes.txt": b"x"}), field="cat/notes.txt", words=("leave it out",)),
    Broken("picture that does not decode", "a.zip", zipped({**ALBUM, "cat/9.png": b"no picture"}), field="cat/9.png", words=("decoded",)),
    Broken(
        "cut picture", "a.zip", zipped({**ALBUM, "dog/9.jpg": picture((99, 99), form="JPEG")[:-200]}), field="dog/9.jpg", words=("decoded",)
    ),
    Broken("empty picture", "a.zip", zipped({**ALBUM, "cat/9.png": b""}), field="cat/9.png", words=("is empty",)),
    Broken("GIF named PNG", "a.zip", zipped({**ALBUM, "cat/9.png": picture(form="GIF")}), field="cat/9.png", words=("another kind",)),
    Broken("picture bomb", "a.zip", zipped({**ALBUM, "cat/9.png": _picture_bomb()}), "too_large", "cat/9.png", ("pixels",)),
    Broken("empty class", "a.zip", zipped({**ALBUM, "bird/": b""}), field="bird", words=("no picture",)),
    Broken("no pictures", "a.zip", zipped({"cat/": b"", "dog/": b""}), words=("no picture",)),
)
