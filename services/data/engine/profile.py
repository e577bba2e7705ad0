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
VALUE_CHARACTERS, VALUE_CHARACTERS_OF_MANY = 200, 40
MANY_COLUMNS = 500
BATCH_COLUMNS, BATCH_CELLS = 64, 32_000_000
BINS = 10


def profile(database: Database, source: str, columns: Sequence[Column]) -> dict[str, Any]:
    """In the shape of the proto's Profile; statistics of numbers leave out NaN and infinity. `source`: a table, or a read_parquet(…)."""
    rows = int(database.row(f"SELECT count(*) FROM {source}")[0])
    characters = VALUE_CHARACTERS if len(columns) <= MANY_COLUMNS else VALUE_CHARACTERS_OF_MANY
    described: list[dict[str, Any]] = []
    step = max(1, min(BATCH_COLUMNS, BATCH_CELLS // rows))
    for begin in range(0, len(columns), step):
        described += _describe(database, source, columns[begin : begin + step], rows, characters)
    # A picture under two names is the same picture.
    of_pictures = any(column.type == "image" for column in columns)
    compared = [column.name for column in columns if not (of_pictures and column.name == "path")]
    return {"rows": rows, "duplicate_rows": duplicate_rows(database, source, compared), "columns": described}


def _describe(database: Database, source: str, columns: Sequence[Column], rows: int, characters: int) -> list[dict[str, Any]]:
    """Some columns, taken out first: of a wide table, each query would cost as much as its binding."""
    taken = (f"md5({quoted(c.name)}) AS {quoted(c.name)}" if c.type == "image" else quoted(c.name) for c in columns)
    database.run(f"CREATE OR REPLACE TEMP TABLE batch AS SELECT {', '.join(taken)} FROM {source}")
    entries = _figures(database, columns, rows)
    _deviations(database, columns, entries)
    for column, entry in zip(columns, entries, strict=True):
        if column.type == "image":
            continue
        if entry["distinct"] <= MAYBE_EXACT:
            _tally(database, column, entry, characters)
        elif column.type in ("string", "integer") and entry["distinct"] <= rows / 2:
            _sketch(database, column, entry, characters)
    _histograms(database, columns, entries)
    return entries


def duplicate_rows(database: Database, source: str, names: Sequence[str]) -> int:
    """How many rows repeat an earlier one. Rows are found by a hash, and then compared."""
    row = f"hash({', '.join(quoted(name) for name in names)})"
    database.run(
        f"CREATE OR REPLACE TEMP TABLE hashes AS SELECT h, count(*) AS n FROM (SELECT {row} AS h FROM {source}) GROUP BY h HAVING n > 1"
    )
    suspects = database.row("SELECT coalesce(sum(n), 0)::BIGINT FROM hashes")[0]
    if not suspects:
        return 0
    selected = ", ".join(quoted(name) for name in names)
    repeated = f"SELECT DISTINCT {selected} FROM {source} WHERE {row} IN (SELECT h FROM hashes)"
    # Suspects are told apart by their values, so that a collision of hashes changes nothing.
    return int(suspects) - int(database.row(f"SELECT count(*) FROM ({repeated})")[0])


def _finite(column: Column) -> str:
    """A number, or NULL where it is not finite; as a double, because sums of integers may pass 64 bits."""
    cell = quoted(column.name)
    return f"CASE WHEN isfinite({cell}) THEN {cell} END" if column.type == "double" else f"CAST({cell} AS DOUBLE)"


def _figures(database: Database, columns: Sequence[Column], rows: int) -> list[dict[str, Any]]:
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
    found = list(database.row(f"SELECT {', '.join(asked)} FROM batch"))
    entries = []
    for position, column in enumerate(columns):
        filled, nans, distinct, least, most, mean, quantiles = found[position * 7 : position * 7 + 7]
        entry: dict[str, Any] = {"name": column.name, "type": column.type, "nulls": rows - filled, "nans": nans, "distinct": distinct}
        if least is not None:
            entry |= {"min": least, "max": most, "quantiles": list(quantiles)}
            if math.isfinite(mean):
                entry["mean"] = mean
        entries.append(entry)
    return entries


def _deviations(database: Database, columns: Sequence[Column], entries: Sequence[dict[str, Any]]) -> None:
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
    found = database.row(f"SELECT {', '.join(asked)} FROM batch")
    for (_, entry), scale, deviation in zip(pairs, scales, found, strict=True):
        if deviation is not None and math.isfinite(deviation * scale):
            entry["std"] = deviation * scale


def _tally(database: Database, column: Column, entry: dict[str, Any], characters: int) -> None:
    """Where values are few, how often each is there: distinct and most frequent ones are exact."""
    cell = quoted(column.name)
    counted = f"SELECT {cell} AS value, count(*) AS n FROM batch WHERE {cell} IS NOT NULL GROUP BY 1"
    spelled = f"left(CAST(value AS VARCHAR), {characters})"
    top = database.rows(f"SELECT {spelled}, n, count(*) OVER () FROM ({counted}) ORDER BY n DESC, value LIMIT {TOP}")
    entry["distinct"] = top[0][2] if top else 0
    entry["top"] = [{"value": value, "count": count} for value, count, _ in top]


def _sketch(database: Database, column: Column, entry: dict[str, Any], characters: int) -> None:
    """Where values are many and repeat, the most frequent ones as a sketch finds them, counted exactly."""
    cell = quoted(column.name)
    frequent = f"SELECT unnest(approx_top_k({cell}, {TOP})) FROM batch"
    counted = f"SELECT {cell} AS value, count(*) AS n FROM batch WHERE {cell} IN ({frequent}) GROUP BY 1"
    top = database.rows(f"SELECT left(CAST(value AS VARCHAR), {characters}), n FROM ({counted}) ORDER BY n DESC, value")
    entry["top"] = [{"value": value, "count": count} for value, count in top]


def _histograms(database: Database, columns: Sequence[Column], entries: Sequence[dict[str, Any]]) -> None:
    asked = []
    for position, (column, entry) in enumerate(zip(columns, entries, strict=True)):
        if "min" not in entry:
            continue
        number = _finite(column)
        # Halves, because max - min may pass the largest double.
        low, width = entry["min"] / 2, entry["max"] / 2 - entry["min"] / 2
        bin_ = f"least(floor(({number} / 2 - {low!r}) / {width!r} * {BINS}), {BINS - 1})::INTEGER" if width else "0"
        asked.append(f"SELECT {position}, {bin_} AS bin, count(*) FROM batch WHERE {number} IS NOT NULL GROUP BY bin")
        entry["histogram"] = [0] * BINS
    for position, bin_number, count in database.rows(" UNION ALL ".join(asked)) if asked else ():
        entries[position]["histogram"][bin_number] = count
