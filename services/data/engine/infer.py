"""Finds the type of each text column: the narrowest one into which every value goes without losing anything.

Works on the table "raw"; knows nothing of files. A sample proposes, the whole column decides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.data.engine.columns import Column, quoted
from services.data.engine.database import Database

# Looked at in Python: enough to rule out what a column is not, few enough that a wide table costs no more.
SAMPLE_ROWS, SAMPLE_CELLS = 512, 200_000
# Longer texts are texts.
SAMPLE_CHARACTERS = 400
BATCH_COLUMNS = 100
# Share of numbers in a text column that is worth a word.
MOSTLY = 0.8

SPACES = r"\s*"
WHOLE = "-?(?:0|[1-9][0-9]*)"
DIGITS = rf"{SPACES}{WHOLE}{SPACES}"
# No leading zeros (codes), no leading plus before digits only (telephone numbers).
EXPONENT = "(?:[eE][+-]?[0-9]+)?"
FRACTION = r"[+-]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)"
DECIMAL = rf"{SPACES}(?:{WHOLE}{EXPONENT}|{FRACTION}{EXPONENT}|[+-]?(?i:inf|infinity)){SPACES}"
# Most decimals: so short that a double holds them, without an exponent.
PLAIN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?"
PLAIN_LENGTH = 15
ZEROS = rf"{SPACES}[+-]?0[0-9]+([.][0-9]+)?{SPACES}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?)?"
ZONED = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
DECIMAL_COMMA = r"\s*-?[0-9]+,[0-9]+\s*"
EXACT_IN_DOUBLE = 1 << 53


@dataclass(frozen=True)
class Candidate:
    """A type a column may have: how its cells look, which of them fit it without loss, and how a fitting cell is converted."""

    name: str
    type: str
    # Also valid in Python. What does not look so does not fit.
    pattern: str
    fits: str
    convert: str

    def fitting(self, cell: str) -> str:
        return self.fits.replace("{c}", cell)

    def converted(self, cell: str) -> str:
        return self.convert.replace("{c}", cell)


CANDIDATES = (
    Candidate(
        "boolean",
        "boolean",
        rf"{SPACES}(?i:true|false){SPACES}",
        "lower(trim({c})) IN ('true', 'false')",
        "CAST(trim({c}) AS BOOLEAN)",
    ),
    Candidate(
        "integer",
        "integer",
        DIGITS,
        f"(regexp_full_match({{c}}, '{DIGITS}') AND TRY_CAST({{c}} AS BIGINT) IS NOT NULL)",
        "CAST({c} AS BIGINT)",
    ),
    Candidate(
        "double",
        "double",
        DECIMAL,
        # CASE and not OR: of an OR, DuckDB computes both sides for all rows.
        f"CASE WHEN strlen({{c}}) <= {PLAIN_LENGTH} AND regexp_full_match({{c}}, '{PLAIN}') THEN TRUE"
        f" ELSE regexp_full_match({{c}}, '{DECIMAL}')"
        f" AND (NOT regexp_full_match({{c}}, '{DIGITS}') OR abs(TRY_CAST({{c}} AS HUGEINT)) <= {EXACT_IN_DOUBLE})"
        " AND (isfinite(TRY_CAST({c} AS DOUBLE)) OR contains(lower({c}), 'inf')) END",
        "CAST({c} AS DOUBLE)",
    ),
    Candidate(
        "timestamp",
        "timestamp",
        rf"{SPACES}{TIME}{SPACES}",
        f"(regexp_full_match(trim({{c}}), '{TIME}') AND TRY_CAST(trim({{c}}) AS TIMESTAMP) IS NOT NULL)",
        "CAST(trim({c}) AS TIMESTAMP)",
    ),
    Candidate(
        "zoned",
        "timestamp",
        rf"{SPACES}{ZONED}{SPACES}",
        f"(regexp_full_match(trim({{c}}), '{ZONED}') AND TRY_CAST(trim({{c}}) AS TIMESTAMPTZ) IS NOT NULL)",
        "CAST(CAST(trim({c}) AS TIMESTAMPTZ) AS TIMESTAMP)",
    ),
)
STRING = Candidate("string", "string", "", "TRUE", "{c}")
JSON_CANDIDATES = ("timestamp", "zoned")


@dataclass
class Typed:
    """What became of the columns: their types, the SQL that converts "raw", and what a person should know."""

    columns: list[Column] = field(default_factory=list)
    select: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def infer(database: Database, names: Sequence[str], *, declared: dict[str, str] | None = None) -> Typed:
    """Types for the columns of "raw". `declared` holds those whose type the format says (JSON): of them only texts are looked at, and only
    for times."""
    declared = declared or {}
    rows = int(database.row("SELECT count(*) FROM raw")[0])
    filled = _counts(database, {name: f"{quoted(name)} IS NOT NULL" for name in names})
    sample = _sample(database, [name for name in names if declared.get(name, "string") == "string"])
    chosen = _choose(database, sample, declared, filled)
    typed = Typed()
    for name in names:
        cell = quoted(name)
        candidate = chosen.get(name)
        typed.select.append(f"{candidate.converted(cell)} AS {cell}" if candidate else cell)
        typed.columns.append(Column(name, candidate.type if candidate else declared[name], nullable=filled[name] < rows))
    known = {name: candidate for name, candidate in chosen.items() if filled[name]}
    typed.notices += _conversions(database, {name: candidate for name, candidate in known.items() if candidate is not STRING})
    texts = [name for name, candidate in known.items() if candidate is STRING and name not in declared]
    typed.notices += _left_as_text(database, {name: sample[name] for name in texts})
    return typed


def gaps(database: Database, names: Sequence[str]) -> dict[str, int]:
    """How many values the columns of "raw" lack; those that lack none are left out."""
    rows = int(database.row("SELECT count(*) FROM raw")[0])
    filled = _counts(database, {name: f"{quoted(name)} IS NOT NULL" for name in names})
    return {name: rows - filled[name] for name in names if filled[name] < rows}


def gap_notice(name: str, absent: int, rows: int, written: Sequence[str] = ()) -> str:
    """`written`: the cells that were taken for missing values, other than empty ones."""
    if absent == rows:
        return f"Column '{name}' holds no value at all."
    words = f" (written as {', '.join(repr(word) for word in written)})" if written else ""
    return f"Column '{name}': {absent} of {rows} values are missing{words}."


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[begin : begin + BATCH_COLUMNS] for begin in range(0, len(names), BATCH_COLUMNS)]


def _counts(database: Database, conditions: dict[str, str], source: str = "raw") -> dict[str, int]:
    """How many rows meet each condition."""
    counted: dict[str, int] = {}
    for batch in _batches(list(conditions)):
        found = database.row(f"SELECT {', '.join(f'count(*) FILTER (WHERE {conditions[name]})' for name in batch)} FROM {source}")
        counted.update(zip(batch, map(int, found), strict=True))
    return counted


def _choose(database: Database, sample: dict[str, list[str]], declared: dict[str, str], filled: dict[str, int]) -> dict[str, Candidate]:
    """The first candidate into which every filled cell goes; the sample spares asking for most of them."""
    open_names = [name for name in sample if filled[name]]
    chosen = dict.fromkeys(sample, STRING)
    for candidate in CANDIDATES:
        asked = [name for name in open_names if name not in declared or candidate.name in JSON_CANDIDATES]
        promising = [name for name in asked if _share(sample[name], candidate.pattern) == 1]
        proven = _counts(database, {name: candidate.fitting(quoted(name)) for name in promising})
        won = [name for name in promising if proven[name] == filled[name]]
        chosen.update(dict.fromkeys(won, candidate))
        open_names = [name for name in open_names if name not in won]
    return chosen


def _sample(database: Database, names: Sequence[str]) -> dict[str, list[str]]:
    """The first filled cells of each column."""
    cells: dict[str, list[str]] = {}
    rows = max(16, min(SAMPLE_ROWS, SAMPLE_CELLS // max(len(names), 1)))
    for batch in _batches(names):
        found = database.rows(f"SELECT {', '.join(f'left({quoted(name)}, {SAMPLE_CHARACTERS})' for name in batch)} FROM raw LIMIT {rows}")
        columns = zip(*found, strict=True)
        cells.update({name: [cell for cell in column if cell is not None] for name, column in zip(batch, columns, strict=True)})
    return cells


def _share(cells: Sequence[str], *patterns: str) -> float:
    """Of the cells that look like one of the patterns; 1 where there are no cells."""
    matches = [re.compile(pattern, re.ASCII).fullmatch for pattern in patterns]
    return sum(any(match(cell) for match in matches) for cell in cells) / len(cells) if cells else 1.0


def _conversions(database: Database, chosen: dict[str, Candidate]) -> list[str]:
    """What conversion does to values."""
    long = _counts(database, {name: f"strlen({quoted(name)}) > 18" for name, candidate in chosen.items() if candidate.name == "double"})
    notices = []
    for name, candidate in chosen.items():
        if candidate.name == "zoned":
            notices.append(f"Column '{name}': times were converted to UTC.")
        elif long.get(name) and (example := _example(database, name, f"strlen({quoted(name)}) > 18 AND {_digits(quoted(name))} > 17")):
            notices.append(f"Column '{name}': values such as {example} have more digits than a double holds (17).")
    return notices


def _left_as_text(database: Database, sample: dict[str, list[str]]) -> list[str]:
    """Why columns that look like numbers were left as text."""
    double = next(candidate for candidate in CANDIDATES if candidate.name == "double")
    notices = []
    for name, cells in sample.items():
        if not cells or _share(cells, DECIMAL, DECIMAL_COMMA, ZEROS) < MOSTLY:
            continue
        cell, left = quoted(name), f"Column '{name}' stays text:"
        if _share(cells, DECIMAL, DECIMAL_COMMA) == 1 and (example := _example(database, name, _looks(cell, DECIMAL_COMMA))):
            notices.append(f"{left} values such as '{example}' have a decimal comma; derive replace({cell}, ',', '.')::DOUBLE.")
        elif _share(cells, DECIMAL, ZEROS) == 1 and (example := _example(database, name, _looks(cell, ZEROS))):
            notices.append(f"{left} values such as '{example}' begin with zeros, which a number would lose.")
        elif example := _example(database, name, f"{_looks(cell, DECIMAL)} AND NOT {double.fitting(cell)}"):
            notices.append(f"{left} numbers such as {example} do not fit a 64-bit number exactly.")
        elif example := _example(database, name, f"NOT {_looks(cell, DECIMAL)}"):
            notices.append(f"{left} most values are numbers, but not '{example}'; a lenient cast to double makes such values missing.")
    return notices


def _looks(cell: str, pattern: str) -> str:
    return f"regexp_full_match({cell}, '{pattern}')"


def _digits(cell: str) -> str:
    """How many significant digits a decimal has, in SQL."""
    return f"length(regexp_replace(regexp_replace({cell}, '[eE].*', ''), '^[^1-9]+|[^0-9]', '', 'g'))"


def _example(database: Database, name: str, condition: str) -> str:
    """The first cell that meets the condition, cut short; "" if there is none."""
    found = database.rows(f"SELECT {quoted(name)} FROM raw WHERE {condition} LIMIT 1")
    return str(found[0][0]).strip()[:40] if found else ""
