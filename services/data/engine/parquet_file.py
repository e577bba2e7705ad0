"""Parquet: checks what the metadata promises before anything is read, then loads the columns as our types."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from libs.errors import Invalid, Violation
from services.data.engine.columns import Column, check_names, literal, quoted, refuse
from services.data.engine.database import Database, damaged
from services.data.engine.infer import gap_notice, gaps
from services.data.engine.limits import Limits

T = pa.types
# Bytes a value takes at least once it is in memory.
CELL_BYTES = 8


@dataclass(frozen=True)
class Loaded:
    """The view "raw" in the database."""

    columns: list[Column]
    notices: list[str]


# Is it this Arrow type, the type it becomes, SQL that converts it, notice.
CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], str, str, str], ...] = (
    (T.is_boolean, "boolean", "{c}", ""),
    (lambda kind: T.is_integer(kind) and not T.is_uint64(kind), "integer", "CAST({c} AS BIGINT)", ""),
    (T.is_float64, "double", "{c}", ""),
    (T.is_floating, "double", "CAST({c} AS DOUBLE)", ""),
    (lambda kind: T.is_decimal(kind) and kind.scale == 0 and kind.precision <= 18, "integer", "CAST({c} AS BIGINT)", ""),
    (lambda kind: T.is_decimal(kind) and kind.precision <= 15, "double", "CAST({c} AS DOUBLE)", ""),
    (T.is_decimal, "double", "CAST({c} AS DOUBLE)", "decimals of more than 15 digits were rounded to doubles"),
    (lambda kind: T.is_string(kind) or T.is_large_string(kind) or T.is_string_view(kind), "string", "{c}", ""),
    (T.is_date, "timestamp", "CAST({c} AS TIMESTAMP)", ""),
    (lambda kind: T.is_timestamp(kind) and kind.tz is not None, "timestamp", "CAST({c} AS TIMESTAMP)", "times were converted to UTC"),
    (lambda kind: T.is_timestamp(kind) and kind.unit == "ns", "timestamp", "CAST({c} AS TIMESTAMP)", "times were cut to microseconds"),
    (T.is_timestamp, "timestamp", "CAST({c} AS TIMESTAMP)", ""),
    (T.is_time, "string", "CAST({c} AS VARCHAR)", "times of day became text"),
    (T.is_null, "string", "CAST({c} AS VARCHAR)", ""),
)


def load(database: Database, path: Path, limits: Limits) -> Loaded:
    """Makes the view "raw"; raises Invalid for what is damaged, too large or of no type we have."""
    with path.open("rb") as file:
        file.seek(-4, 2)
        if file.read(4) != b"PAR1":
            raise refuse("", "the Parquet file does not end in 'PAR1': it is cut off or damaged; write it again")
    with damaged("", "the Parquet file is damaged"):
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    kept = [name for name in schema.names if not name.startswith("__index_level_")]
    check_names(kept, "schema", limits)
    _check_size(metadata, limits)
    columns, selected, notices = [], [], []
    violations = []
    for name in kept:
        kind = schema.field(name).type
        kind = kind.value_type if T.is_dictionary(kind) else kind
        found = _conversion(database, path, name, kind)
        if isinstance(found, Violation):
            violations.append(found)
            continue
        type_, convert, notice = found
        columns.append(Column(name, type_))
        selected.append(f"{convert.format(c=quoted(name))} AS {quoted(name)}")
        notices += [f"Column '{name}': {notice}."] if notice else []
    if violations:
        raise Invalid.of(violations[:20], code="invalid_data")
    if len(kept) < len(schema.names):
        notices.append("The index that pandas had written was left out.")
    with damaged("", "the Parquet file is damaged"):
        database.run(f"CREATE VIEW raw AS SELECT {', '.join(selected)} FROM read_parquet({literal(str(path))})")
        lacking = gaps(database, kept)
    notices += [gap_notice(name, count, metadata.num_rows) for name, count in lacking.items()]
    return Loaded([Column(column.name, column.type, nullable=column.name in lacking) for column in columns], notices)


def _check_size(metadata: pq.FileMetaData, limits: Limits) -> None:
    rows, width = metadata.num_rows, metadata.num_columns
    if rows <= 0:
        raise refuse("", f"the Parquet file has {width} columns and no row; add the data")
    if not width:
        raise refuse("", "the Parquet file has no column; add the data")
    claimed = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if rows * width > limits.max_cells or claimed > limits.max_expanded_bytes:
        raise refuse(
            "",
            f"its metadata promise {rows} rows × {width} columns in {max(claimed, rows * width * CELL_BYTES)} bytes; at most"
            f" {limits.max_cells} cells and {limits.max_expanded_bytes} bytes are read: split it into smaller files",
            code="too_large",
        )
    if sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)) != rows:
        raise refuse("", "the Parquet file is damaged: its row groups do not add up to its rows")


def _conversion(database: Database, path: Path, name: str, kind: pa.DataType) -> tuple[str, str, str] | Violation:
    if T.is_uint64(kind):
        with damaged("", "the Parquet file is damaged"):
            most = database.row(f"SELECT max({quoted(name)}) FROM read_parquet({literal(str(path))})")[0]
        if most is not None and most >= 1 << 63:
            return "string", "CAST({c} AS VARCHAR)", "integers beyond 64 bits became text"
        return "integer", "CAST({c} AS BIGINT)", ""
    for matches, type_, convert, notice in CONVERSIONS:
        if matches(kind):
            return type_, convert, notice
    if T.is_nested(kind):
        advice = "columns hold single values: flatten it into columns of its own"
    elif T.is_binary(kind) or T.is_large_binary(kind) or T.is_fixed_size_binary(kind):
        advice = "bytes are not taken in tables; upload pictures as a ZIP with a folder a class"
    else:
        advice = "take numbers, truth values, texts or times"
    return Violation(f"column '{name}'", f"its type {kind} is not supported; {advice}")
