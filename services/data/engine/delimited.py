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
from services.data.engine.columns import check_names, quoted, refuse
from services.data.engine.database import Database, damaged
from services.data.engine.limits import Limits
from services.data.engine.text import Facts, scan

SAMPLE_CHARACTERS = 1 << 16
SAMPLE_RECORDS = 100
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


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
    if facts.has_quotes:
        _check_records(path, separator, len(names), facts, limits)
    _read(database, path, separator, names, facts, limits)
    if database.row("SELECT count(*) FROM raw")[0] == 0:
        raise refuse("line 2", f"there is a header of {len(names)} columns and no row under it; add the data")
    return Loaded(names, _notices(header, names, separator, kind))


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


def _read(database: Database, path: Path, separator: str, names: Sequence[str], facts: Facts, limits: Limits) -> None:
    try:
        reader = arrow_csv.open_csv(
            path,
            # As many bytes as the longest line may have: Arrow reads no line that is longer than a block.
            read_options=arrow_csv.ReadOptions(column_names=list(names), use_threads=False, block_size=limits.max_line_bytes),
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator, newlines_in_values=facts.has_quotes, ignore_empty_lines=True, double_quote=True
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False, check_utf8=False
            ),
        )
        with_header = pa.RecordBatchReader.from_batches(reader.schema, _without_first_row(reader))
        database.connection.register("incoming", with_header)
        # Loaded as it comes; the order of rows is the order of lines.
        database.run("CREATE TABLE raw AS SELECT * FROM incoming")
        database.connection.unregister("incoming")
    except Exception as error:
        _check_records(path, separator, len(names), facts, limits)
        with damaged("", "the file cannot be read as CSV"):
            raise ValueError(str(error)) from error


def _without_first_row(reader: arrow_csv.CSVStreamingReader) -> Iterator[pa.RecordBatch]:
    """The header came as the first row, because the names were given."""
    first = True
    for batch in reader:
        yield batch.slice(1) if first and batch.num_rows else batch
        first = first and not batch.num_rows


def _check_records(path: Path, separator: str, width: int, facts: Facts, limits: Limits) -> None:
    """Raises for every record that is not `width` values wide, and for quotes that do not close."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            # Everything at C speed first; names and numbers only where something is wrong.
            if set(map(len, _records(file, separator))) <= {0, width}:
                return
        except csv.Error:
            pass
    violations: list[Violation] = []
    wrong = 0
    begin = end = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _records(file, separator)
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
    if wrong == 1 and not facts.ends_with_newline and violations[0].field == f"line {begin}":
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


def selected(names: Sequence[str]) -> str:
    """The columns as a SQL list."""
    return ", ".join(quoted(name) for name in names)
