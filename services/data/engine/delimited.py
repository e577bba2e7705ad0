"""CSV and TSV: finds the separator and the header, and loads every cell as text, or says which line is wrong.

What counts as right is what Python's `csv` module says in strict mode. Arrow reads five times as fast and agrees with it on all that
has no quotes; where there are quotes, `csv` reads the file first.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from libs.errors import Invalid, Violation
from services.data.engine.columns import check_names, refuse
from services.data.engine.database import Database, damaged
from services.data.engine.infer import gap_notice, gaps
from services.data.engine.limits import Limits
from services.data.engine.loading import load as load_batches
from services.data.engine.text import Facts, scan

SAMPLE_CHARACTERS = 1 << 16
SAMPLE_RECORDS = 100
# Arrow's blocks of all columns together, about.
COLUMN_BYTES = 512 << 20
# Cells that mean "no value": in these spellings, perhaps with a space before or after. Empty and blank cells do as well.
MISSING_WORDS = ("na", "n/a", "<na>", "#n/a", "null", "nan", "none", "?", "-")
MISSING = sorted(
    {" " * length for length in range(33)}
    | {
        f"{before}{spelled}{after}"
        for word in MISSING_WORDS
        for spelled in (word, word.upper(), word.capitalize(), "NaN")
        for before in ("", " ")
        for after in ("", " ")
    }
)
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Layout:
    """How a file is to be read."""

    path: Path
    separator: str
    names: list[str]
    facts: Facts

    def records(self, file: Iterable[str]) -> Any:
        """As Python's `csv` reads them, in strict mode."""
        return _records(file, self.separator)


@dataclass(frozen=True)
class Loaded:
    """The table "raw" in the database: its columns, and what a person should know of how they were read."""

    names: list[str]
    notices: list[str]


def load(database: Database, path: Path, kind: str, limits: Limits) -> Loaded:
    """Makes the table "raw" of text columns; raises Invalid with the lines that are wrong."""
    csv.field_size_limit(limits.max_line_bytes)
    facts = scan(path)
    separator = _separator(path, kind)
    header = _header(path, separator)
    names = [name.strip() for name in header]
    check_names(names, "line 1", limits)
    layout = Layout(path, separator, names, facts)
    if facts.has_quotes:
        _check_records(layout, limits)
    block_bytes = _read(database, layout, limits)
    rows = database.row("SELECT count(*) FROM raw")[0]
    if not rows:
        raise refuse("line 2", f"there is a header of {len(names)} columns and no row under it; add the data")
    lacking = gaps(database, names)
    written = _spellings(layout, block_bytes, list(lacking)) if lacking else {}
    notices = [gap_notice(name, count, rows, written.get(name, ())) for name, count in lacking.items()]
    return Loaded(names, _notices(header, names, separator, kind) + notices)


def _records(lines: Iterable[str], separator: str, *, strict: bool = True) -> Any:
    return csv.reader(lines, delimiter=separator, strict=strict)


def _separator(path: Path, kind: str) -> str:
    """The one that divides the header most often while the rows under it agree."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        sample = file.read(SAMPLE_CHARACTERS)
        cut = bool(file.read(1))
    lines = sample.splitlines(keepends=True)
    lines = lines[:-1] if cut and len(lines) > 1 else lines

    def fit(separator: str) -> tuple[float, int]:
        records = [record for record in islice(_records(lines, separator, strict=False), SAMPLE_RECORDS) if record]
        width = len(records[0]) if records else 0
        agreeing = sum(len(record) == width for record in records)
        return (round(agreeing / len(records), 1) if width > 1 else -1.0, width)

    order = ["\t", ",", ";", "|"] if kind == "tsv" else list(SEPARATORS)
    return max(order, key=fit)


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _records(file, separator)
        try:
            return next(record for record in reader if record)
        except csv.Error as error:
            raise refuse("line 1", f"the header cannot be read: {error}") from error


def _read(database: Database, layout: Layout, limits: Limits) -> int:
    """Makes the table "raw"; answers the size of blocks by which the file can be read."""
    failure: Exception | None = None
    for block_bytes in _block_sizes(len(layout.names), limits):
        try:
            reader = _open(layout, block_bytes)
            load_batches(database, "raw", reader.schema, _without_first_row(reader))
            return block_bytes
        except Exception as error:
            failure = error
            if "straddl" not in str(error):
                break
    _check_records(layout, limits)
    with damaged("", "the file cannot be read as CSV"):
        raise failure or ValueError("no block is large enough")


def _block_sizes(columns: int, limits: Limits) -> Iterator[int]:
    """Arrow reads no line that is longer than two blocks, and takes as much memory as a block for every column: small ones first."""
    size = max(min(1 << 20, COLUMN_BYTES // columns), 1 << 16)
    while size < limits.max_line_bytes:
        yield size
        size *= 8
    yield limits.max_line_bytes


def _open(layout: Layout, block_bytes: int, *, only: Sequence[str] | None = None) -> arrow_csv.CSVStreamingReader:
    """All cells as texts; those that mean "no value" as nulls, unless `only` some columns are asked for."""
    return arrow_csv.open_csv(
        layout.path,
        read_options=arrow_csv.ReadOptions(column_names=layout.names, use_threads=False, block_size=block_bytes),
        parse_options=arrow_csv.ParseOptions(
            delimiter=layout.separator, newlines_in_values=layout.facts.has_quotes, ignore_empty_lines=True
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in layout.names},
            include_columns=only,
            null_values=MISSING,
            strings_can_be_null=only is None,
            check_utf8=False,
        ),
    )


def _spellings(layout: Layout, block_bytes: int, columns: Sequence[str]) -> dict[str, list[str]]:
    """How "no value" is spelled in these columns, as far as the file's beginning shows."""
    reader = _open(layout, block_bytes, only=columns)
    first = reader.read_next_batch().slice(1)
    reader.close()
    meanings = set(MISSING)
    return {
        name: sorted({word.strip() for word in meanings.intersection(cells.unique().to_pylist())} - {""})
        for name, cells in zip(columns, first.columns, strict=True)
    }


def _without_first_row(reader: arrow_csv.CSVStreamingReader) -> Iterator[pa.RecordBatch]:
    """The header came as the first row, because the names were given."""
    first = True
    for batch in reader:
        yield batch.slice(1) if first and batch.num_rows else batch
        first = first and not batch.num_rows


def _check_records(layout: Layout, limits: Limits) -> None:
    """Raises for every record that is not as wide as the header, and for quotes that do not close."""
    width = len(layout.names)
    with layout.path.open(encoding="utf-8-sig", newline="") as file:
        try:
            # Everything at C speed first; names and numbers only where something is wrong.
            if set(map(len, layout.records(file))) <= {0, width}:
                return
        except csv.Error:
            pass
    violations: list[Violation] = []
    wrong = 0
    begin = end = 0
    with layout.path.open(encoding="utf-8-sig", newline="") as file:
        reader = layout.records(file)
        try:
            for record in reader:
                begin, end = end + 1, reader.line_num
                if record and len(record) != width:
                    wrong += 1
                    if len(violations) < 20:
                        violations.append(_ragged(begin, record, width))
        except csv.Error as error:
            violations.append(_unreadable(str(error), end + 1, reader.line_num, limits))
            wrong += 1
    if wrong == 1 and not layout.facts.ends_with_newline and violations[0].field == f"line {begin}":
        message = f"{violations[0].message}; it is the last line and has no line end: the file seems to be cut off"
        violations = [Violation(f"line {begin}", message)]
    if violations:
        first = violations[0]
        more = f" (and {wrong - 1} more such lines)" if wrong > 1 else ""
        raise Invalid(f"{first.field}: {first.message}{more}", code="invalid_data", errors=violations, meta={"lines": wrong})


def _ragged(line: int, record: Sequence[str], width: int) -> Violation:
    found = f"{len(record)} value{'' if len(record) == 1 else 's'}"
    hint = "; a value that holds the separator needs double quotes" if len(record) > width else ""
    return Violation(f"line {line}", f"expected {width} value{'' if width == 1 else 's'} as in the header, found {found}{hint}")


def _unreadable(error: str, begin: int, line: int, limits: Limits) -> Violation:
    if "unexpected end of data" in error:
        return Violation(f"line {begin}", "a quoted value begins here and never ends: the file is cut off, or a double quote is missing")
    if "field larger than field limit" in error:
        return Violation(f"line {begin}", f"a value is longer than {limits.max_line_bytes} bytes; is a double quote missing?")
    if "expected after" in error:
        return Violation(
            f"line {line}", 'text follows a closing double quote; write a double quote inside a value twice ("") or leave the quotes out'
        )
    return Violation(f"line {line}", f"cannot be read as CSV: {error}")


def _notices(header: Sequence[str], names: Sequence[str], separator: str, kind: str) -> list[str]:
    notices = []
    if separator != ("\t" if kind == "tsv" else ",") and len(names) > 1:
        notices.append(f"Values are separated by {SEPARATORS[separator]}.")
    if list(header) != list(names):
        notices.append("Spaces around column names were left out.")
    if all(_is_number(name) for name in names):
        notices.append("The first line was taken as the header although it holds only numbers; is a header missing?")
    return notices


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
