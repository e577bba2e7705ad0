"""Describes a table: gaps, distinct values, figures, most frequent values, repeated rows. Knows nothing of where it came from."""

import math
from collections.abc import Sequence
from typing import Any

from services.data.engine.columns import Column, quoted
from services.data.engine.database import Database

EXACT_DISTINCT = 10_000
# The approximate count may err by some per cent; up to here it is worth counting exactly.
MAYBE_EXACT = 12_000
EXACT_QUANTILE_ROWS = 1_000_000
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]
TOP = 100
VALUE_CHARACTERS = 200
BATCH_COLUMNS = 64
BINS = 10


def profile(database: Database, table: str, columns: Sequence[Column]) -> dict[str, Any]:
    """In the shape of the proto's Profile. Statistics of numbers leave out NaN and infinity."""
    rows = int(database.row(f"SELECT count(*) FROM {table}")[0])
    described = []
    for begin in range(0, len(columns), BATCH_COLUMNS):
        described += _figures(database, table, columns[begin : begin + BATCH_COLUMNS], rows)
    for column, entry in zip(columns, described, strict=True):
        if column.type != "image":
            _frequent(database, table, column, entry, rows)
    for begin in range(0, len(columns), BATCH_COLUMNS):
        _histograms(database, table, columns[begin : begin + BATCH_COLUMNS], described[begin : begin + BATCH_COLUMNS])
    compared = [column.name for column in columns if not (_is_pictures(columns) and column.name == "path")]
    return {"rows": rows, "duplicate_rows": duplicate_rows(database, table, compared), "columns": described}


def duplicate_rows(database: Database, table: str, names: Sequence[str]) -> int:
    """How many rows repeat an earlier one. Rows are found by a hash, and then compared."""
    row = f"hash({', '.join(quoted(name) for name in names)})"
    database.run(
        f"CREATE OR REPLACE TEMP TABLE hashes AS SELECT h, count(*) AS n FROM (SELECT {row} AS h FROM {table}) GROUP BY h HAVING n > 1"
    )
    suspects = database.row("SELECT coalesce(sum(n), 0)::BIGINT FROM hashes")[0]
    if not suspects:
        return 0
    selected = ", ".join(quoted(name) for name in names)
    repeated = f"SELECT DISTINCT {selected} FROM {table} WHERE {row} IN (SELECT h FROM hashes)"
    # Suspects are told apart by their values, so that a collision of hashes changes nothing.
    return int(suspects) - int(database.row(f"SELECT count(*) FROM ({repeated})")[0])


def _is_pictures(columns: Sequence[Column]) -> bool:
    return any(column.type == "image" for column in columns)


def _finite(column: Column) -> str:
    """A number, or NULL where it is not finite; as a double, because sums of integers may pass 64 bits."""
    cell = quoted(column.name)
    return f"CASE WHEN isfinite({cell}) THEN {cell} END" if column.type == "double" else f"CAST({cell} AS DOUBLE)"


def _figures(database: Database, table: str, columns: Sequence[Column], rows: int) -> list[dict[str, Any]]:
    quantile = "quantile_cont" if rows <= EXACT_QUANTILE_ROWS else "approx_quantile"
    asked: list[str] = []
    for column in columns:
        cell = quoted(column.name)
        asked += [f"count({cell})", f"count(*) FILTER (WHERE isnan({cell}))" if column.type == "double" else "0"]
        asked.append(f"approx_count_distinct({cell})")
        if column.type in ("double", "integer"):
            number = _finite(column)
            asked += [f"min({number})", f"max({number})", f"avg({number})", f"{quantile}({number}, {QUANTILES})"]
        else:
            asked += ["NULL"] * 4
    found = list(database.row(f"SELECT {', '.join(asked)} FROM {table}"))
    entries = []
    for position, column in enumerate(columns):
        filled, nans, distinct, least, most, mean, quantiles = found[position * 7 : position * 7 + 7]
        entry: dict[str, Any] = {"name": column.name, "type": column.type, "nulls": rows - filled, "nans": nans, "distinct": distinct}
        if least is not None:
            entry |= {"min": least, "max": most, "quantiles": list(quantiles)}
            if math.isfinite(mean):
                entry["mean"] = mean
        entries.append(entry)
    _deviations(database, table, columns, entries)
    return entries


def _deviations(database: Database, table: str, columns: Sequence[Column], entries: Sequence[dict[str, Any]]) -> None:
    """Standard deviations about the known means: exact also where mean² dwarfs the variance, and no overflow stops the rest."""
    pairs = [(column, entry) for column, entry in zip(columns, entries, strict=True) if "mean" in entry]
    if not pairs:
        return
    asked, scales = [], []
    for column, entry in pairs:
        furthest = max(abs(entry["max"] - entry["mean"]), abs(entry["min"] - entry["mean"])) or 1.0
        scale = furthest if math.isfinite(furthest) else 1e308
        away = f"({_finite(column)} / {scale!r} - {entry['mean'] / scale!r})"
        asked.append(f"sqrt(sum({away} * {away}) / nullif(count({_finite(column)}) - 1, 0))")
        scales.append(scale)
    found = database.row(f"SELECT {', '.join(asked)} FROM {table}")
    for (_, entry), scale, deviation in zip(pairs, scales, found, strict=True):
        if deviation is not None and math.isfinite(deviation * scale):
            entry["std"] = deviation * scale


def _frequent(database: Database, table: str, column: Column, entry: dict[str, Any], rows: int) -> None:
    """Distinct and most frequent values: exact where they are few, else the most frequent of a sketch, counted exactly."""
    cell = quoted(column.name)
    text = f"left(CAST(value AS VARCHAR), {VALUE_CHARACTERS})"
    if entry["distinct"] <= MAYBE_EXACT:
        database.run(
            f"CREATE OR REPLACE TEMP TABLE tally AS SELECT {cell} AS value, count(*) AS n FROM {table} WHERE {cell} IS NOT NULL GROUP BY 1"
        )
        entry["distinct"] = int(database.row("SELECT count(*) FROM tally")[0])
    elif column.type in ("double", "timestamp") or entry["distinct"] > rows / 2:
        # Nearly every value is another one: none is frequent.
        entry["top"] = []
        return
    else:
        database.run(
            f"CREATE OR REPLACE TEMP TABLE tally AS SELECT {cell} AS value, count(*) AS n FROM {table}"
            f" WHERE {cell} IN (SELECT unnest(approx_top_k({cell}, {TOP})) FROM {table}) GROUP BY 1"
        )
    top = database.rows(f"SELECT {text}, n FROM tally ORDER BY n DESC, value LIMIT {TOP}")
    entry["top"] = [{"value": value, "count": count} for value, count in top]


def _histograms(database: Database, table: str, columns: Sequence[Column], entries: Sequence[dict[str, Any]]) -> None:
    pairs = [(column, entry) for column, entry in zip(columns, entries, strict=True) if "min" in entry]
    if not pairs:
        return
    asked = []
    for column, entry in pairs:
        # Halves, because max - min may pass the largest double.
        low, width = entry["min"] / 2, entry["max"] / 2 - entry["min"] / 2
        bin_ = f"least(floor(({_finite(column)} / 2 - {low!r}) / {width!r} * {BINS}), {BINS - 1})::INTEGER" if width else "0"
        asked.append(f"histogram(CASE WHEN {_finite(column)} IS NOT NULL THEN {bin_} END)")
    for (_, entry), counts in zip(pairs, database.row(f"SELECT {', '.join(asked)} FROM {table}"), strict=True):
        entry["histogram"] = [int((counts or {}).get(number, 0)) for number in range(BINS)]
