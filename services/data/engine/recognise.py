"""Says what kind of file an upload is, by its first bytes and then by its name; says why where it is none we take."""

import codecs
from pathlib import Path

from services.data.engine.columns import refuse

HEAD_BYTES = 1 << 16
TAKEN = "CSV, TSV, JSON lines, Parquet, or a ZIP of PNG or JPEG pictures in a folder a class"

# First bytes, what it is, what to do.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", "unpack it and upload what is inside"),
    (b"BZh", "a bzip2 file", "unpack it and upload what is inside"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it and upload what is inside"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it and upload what is inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "pack pictures as ZIP, upload tables as they are"),
    (b"Rar!\x1a\x07", "a RAR archive", "pack pictures as ZIP, upload tables as they are"),
    (b"\x89PNG\r\n\x1a\n", "a single PNG picture", "upload a ZIP of pictures in a folder a class"),
    (b"\xff\xd8\xff", "a single JPEG picture", "upload a ZIP of pictures in a folder a class"),
    (b"GIF8", "a GIF picture", "upload a ZIP of PNG or JPEG pictures in a folder a class"),
    (b"%PDF", "a PDF document", f"upload {TAKEN}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", "save the sheet as CSV (UTF-8)"),
    (b"SQLite format 3\x00", "an SQLite database", "export one table as CSV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write the table as Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write it as a table with named columns, e.g. Parquet"),
    (b"ARROW1", "an Arrow or Feather file", "write the table as Parquet"),
    (b"ORC", "an ORC file", "write the table as Parquet"),
    (b"Obj\x01", "an Avro file", "write the table as Parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"\x7fELF", "a program", f"upload {TAKEN}"),
    (b"MZ", "a program", f"upload {TAKEN}"),
)
PICKLE_OPENERS = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
BY_NAME = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".zip": "zip",
}


def recognise(path: Path, file_name: str) -> str:
    """One of "csv", "tsv", "jsonl", "parquet", "zip"; raises Invalid for anything else."""
    shown = file_name or "the upload"
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise refuse(shown, f"the file is empty; it should be {TAKEN}")
    named = BY_NAME.get(Path(file_name).suffix.lower(), "")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    _refuse_foreign(head, shown)
    if named in ("parquet", "zip"):
        begins = {"parquet": "PAR1", "zip": "PK"}[named]
        raise refuse(shown, f"the name says {named}, but the file does not begin with '{begins}'; it is damaged or has the wrong name")
    text = _text(head, shown).lstrip("\ufeff")
    begun = text.lstrip()
    if not begun:
        what = "holds nothing but blank lines" if len(head) < HEAD_BYTES else f"begins with {HEAD_BYTES >> 10} KiB of blanks"
        raise refuse(shown, f"the file {what}; it should be {TAKEN}")
    if begun[:15].lower().startswith(("<!doctype", "<html", "<?xml")):
        raise refuse(shown, f"the file is a web page or XML, not data; it should be {TAKEN}", code="unsupported_media_type")
    if begun.startswith("[") and (named == "jsonl" or begun[1:].lstrip().startswith(("{", "["))):
        raise refuse(
            shown,
            "the file is one JSON array; write one object a line instead, e.g. DataFrame.to_json(path, orient='records', lines=True)",
            code="unsupported_media_type",
        )
    if named == "jsonl" or (named == "" and begun.startswith("{")):
        return "jsonl"
    if named == "csv" and begun.startswith(('{"', '{ "')):
        return "jsonl"
    return "tsv" if named == "tsv" else "csv"


def _refuse_foreign(head: bytes, shown: str) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise refuse(shown, "line 1: the text is UTF-16 or UTF-32; save the file as UTF-8")
    if head.startswith(PICKLE_OPENERS) or (head.startswith(b"PK") and b"data.pkl" in head):
        advice = "pickles can run code and are never read; write the table as Parquet"
        raise refuse(shown, f"the file looks like a Python pickle: {advice}", code="unsupported_media_type")
    for opener, what, advice in FOREIGN:
        # Two or three letters may begin a text as well.
        if head.startswith(opener) and (len(opener) > 3 or not _is_text(head)):
            raise refuse(shown, f"the file is {what}; {advice}", code="unsupported_media_type")
    if head[257:262] == b"ustar":
        raise refuse(shown, "the file is a tar archive; pack pictures as ZIP, upload tables as they are", code="unsupported_media_type")


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head


def _text(head: bytes, shown: str) -> str:
    """Decodes what it can; raises where the bytes are no text at all."""
    controls = sum(head.count(bytes([code])) for code in (*range(9), *range(14, 27), *range(28, 32)))
    if controls > 8 or controls * 4 > len(head):
        raise refuse(shown, f"the file is binary, not text; it should be {TAKEN}", code="unsupported_media_type")
    return head.decode("utf-8", errors="replace")
