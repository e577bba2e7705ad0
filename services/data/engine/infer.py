"""Finds the type of each text column: the narrowest one into which every value goes without losing anything.

Works on the table "raw"; knows nothing of files. A sample proposes, the whole column decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.data.engine.columns import Column, quoted
from services.data.engine.database import Database

SAMPLE_ROWS = 8192
# Cells that mean "no value", whatever their case and the spaces around them.
MISSING = ("", "na", "n/a", "<na>", "#n/a", "null", "nan", "none", "?", "-")
BATCH_COLUMNS = 100

SPACES = r"\s*"
DIGITS = rf"{SPACES}-?(0|[1-9][0-9]*){SPACES}"
# No leading zeros (codes), no leading plus before digits only (telephone numbers).
EXPONENT = r"([eE][+-]?[0-9]+)?"
DECIMAL = rf"{SPACES}(-?(0|[1-9][0-9]*){EXPONENT}|[+-]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+){EXPONENT}|[+-]?(?i:inf|infinity)){SPACES}"
ZEROS = rf"{SPACES}[+-]?0[0-9]+([.][0-9]+)?{SPACES}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?)?"
ZONED = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
DECIMAL_COMMA = r"\s*-?[0-9]+,[0-9]+\s*"
EXACT_IN_DOUBLE = 1 << 53


@dataclass(frozen=True)
class Candidate:
    """A type a column may have: which cells fit it, and how a fitting cell is converted."""

    name: str
    type: str
    fits: str
    convert: str
    # Fits by its looks but not without loss: said in a notice.
    looks: str = ""

    def fitting(self, cell: str) -> str:
        return self.fits.replace("{c}", cell)

    def converted(self, cell: str) -> str:
        return self.convert.replace("{c}", cell)


CANDIDATES = (
    Candidate("boolean", "boolean", "lower(trim({c})) IN ('true', 'false')", "CAST(trim({c}) AS BOOLEAN)"),
    Candidate(
        "integer",
        "integer",
        f"(regexp_full_match({{c}}, '{DIGITS}') AND TRY_CAST({{c}} AS BIGINT) IS NOT NULL)",
        "CAST({c} AS BIGINT)",
        looks=f"regexp_full_match({{c}}, '{DIGITS}')",
    ),
    Candidate(
        "double",
        "double",
        f"(regexp_full_match({{c}}, '{DECIMAL}')"
        f" AND (strlen({{c}}) < 16 OR NOT regexp_full_match({{c}}, '{DIGITS}') OR abs(TRY_CAST({{c}} AS HUGEINT)) <= {EXACT_IN_DOUBLE})"
        " AND (isfinite(TRY_CAST({c} AS DOUBLE)) OR contains(lower({c}), 'inf')))",
        "CAST({c} AS DOUBLE)",
        looks=f"regexp_full_match({{c}}, '{DECIMAL}')",
    ),
    Candidate(
        "timestamp",
        "timestamp",
        f"(regexp_full_match(trim({{c}}), '{TIME}') AND TRY_CAST(trim({{c}}) AS TIMESTAMP) IS NOT NULL)",
        "CAST(trim({c}) AS TIMESTAMP)",
    ),
    Candidate(
        "zoned",
        "timestamp",
        f"(regexp_full_match(trim({{c}}), '{ZONED}') AND TRY_CAST(trim({{c}}) AS TIMESTAMPTZ) IS NOT NULL)",
        "CAST(CAST(trim({c}) AS TIMESTAMPTZ) AS TIMESTAMP)",
    ),
)
STRING = Candidate("string", "string", "TRUE", "{c}")
JSON_CANDIDATES = ("timestamp", "zoned")


@dataclass
class Typed:
    """What became of the columns: their types, the SQL that converts "raw", and what a person should know."""

    columns: list[Column] = field(default_factory=list)
    select: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def missing(column: str) -> str:
    """SQL that is true for a cell that means "no value"."""
    words = ", ".join(f"'{word}'" for word in MISSING)
    return f"({column} IS NULL OR (strlen({column}) <= 12 AND lower(trim({column})) IN ({words})))"


def infer(database: Database, names: Sequence[str], *, declared: dict[str, str] | None = None) -> Typed:
    """Types for the columns of "raw". `declared` holds those whose type the format says (JSON): of them only texts are looked at, and only
    for times."""
    declared = declared or {}
    rows = int(database.row("SELECT count(*) FROM raw")[0])
    texts = [name for name in names if declared.get(name, "string") == "string"]
    tokens = _missing_tokens(database, [name for name in texts if name not in declared])
    empty = {name: rows - filled for name, filled in _counts(database, {name: f"{quoted(name)} IS NOT NULL" for name in names}).items()}
    absent = {name: sum(tokens[name].values()) if name in tokens else empty[name] for name in names}
    chosen = _choose(database, texts, declared, {name: rows - absent[name] for name in texts}, rows)
    typed = Typed()
    for name in names:
        cell = quoted(name)
        if name in chosen:
            kind, candidate = chosen[name].type, chosen[name]
            converted = candidate.converted(cell)
            gap = missing(cell) if name not in declared else f"{cell} IS NULL"
            typed.select.append(f"CASE WHEN {gap} THEN NULL ELSE {converted} END AS {cell}" if absent[name] else f"{converted} AS {cell}")
        else:
            kind = declared[name]
            typed.select.append(cell)
        typed.columns.append(Column(name, kind, nullable=absent[name] > 0))
        typed.notices += _gaps(name, absent[name], rows, tokens.get(name, {}))
        if name in chosen and absent[name] < rows:
            typed.notices += _remarks(database, name, chosen[name], declared=name in declared)
    return typed


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[begin : begin + BATCH_COLUMNS] for begin in range(0, len(names), BATCH_COLUMNS)]


def _counts(database: Database, conditions: dict[str, str], source: str = "raw") -> dict[str, int]:
    """How many rows meet each condition."""
    counted: dict[str, int] = {}
    for batch in _batches(list(conditions)):
        found = database.row(f"SELECT {', '.join(f'count(*) FILTER (WHERE {conditions[name]})' for name in batch)} FROM {source}")
        counted.update(zip(batch, map(int, found), strict=True))
    return counted


def _missing_tokens(database: Database, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each way of saying "no value" is there, a column."""
    tokens: dict[str, dict[str, int]] = {}
    for batch in _batches(names):
        asked = (f"histogram(CASE WHEN {missing(quoted(name))} THEN trim(coalesce({quoted(name)}, '')) END)" for name in batch)
        found = database.row(f"SELECT {', '.join(asked)} FROM raw")
        tokens.update({name: dict(counts or {}) for name, counts in zip(batch, found, strict=True)})
    return tokens


def _choose(database: Database, names: Sequence[str], declared: dict[str, str], filled: dict[str, int], rows: int) -> dict[str, Candidate]:
    """The first candidate into which every filled cell goes; the sample spares asking for most of them."""
    database.run(f"CREATE OR REPLACE TEMP TABLE sample AS SELECT * FROM raw LIMIT {SAMPLE_ROWS}")
    open_names = [name for name in names if filled[name]]
    filled_cells = {name: f"{quoted(name)} IS NOT NULL" for name in open_names}
    # Asked only where something is missing: it costs as much as the rest.
    filled_cells.update({name: f"NOT {missing(quoted(name))}" for name in open_names if name not in declared and filled[name] < rows})
    in_sample = _counts(database, filled_cells, "sample")
    chosen = dict.fromkeys(names, STRING)
    for candidate in CANDIDATES:
        asked = [name for name in open_names if name not in declared or candidate.name in JSON_CANDIDATES]
        fits = {name: f"{filled_cells[name]} AND {candidate.fitting(quoted(name))}" for name in asked}
        promising = [name for name, count in _counts(database, fits, "sample").items() if count == in_sample[name]]
        proven = _counts(database, {name: fits[name] for name in promising})
        won = [name for name in promising if proven[name] == filled[name]]
        chosen.update(dict.fromkeys(won, candidate))
        open_names = [name for name in open_names if name not in won]
    return chosen


def _gaps(name: str, absent: int, rows: int, tokens: dict[str, int]) -> list[str]:
    if not absent:
        return []
    if absent == rows:
        return [f"Column '{name}' holds no value at all."]
    written = ", ".join(f"'{token}'" if token else "empty" for token in sorted(tokens, key=lambda token: (-tokens[token], token))[:6])
    return [
        f"Column '{name}': {absent} of {rows} values are missing" + (f" (written as {written})." if written not in ("", "empty") else ".")
    ]


def _remarks(database: Database, name: str, chosen: Candidate, *, declared: bool) -> list[str]:
    """Why a column that looks like something else was left as text, and what conversion does to it."""
    cell = quoted(name)
    if chosen.name == "zoned":
        return [f"Column '{name}': times were converted to UTC."]
    if chosen.name == "double" and (long := _example(database, name, f"strlen({cell}) > 18 AND {_digits(cell)} > 17")):
        return [f"Column '{name}': values such as {long} have more digits than a double holds (17)."]
    if chosen is not STRING or declared:
        return []
    gap = missing(cell)
    double = next(candidate for candidate in CANDIDATES if candidate.name == "double")
    looks, fits = double.looks.replace("{c}", cell), double.fitting(cell)
    zeros, comma = f"regexp_full_match({cell}, '{ZEROS}')", f"regexp_full_match({cell}, '{DECIMAL_COMMA}')"
    if _share(database, f"{gap} OR {looks} OR {comma}") == 1 and (example := _example(database, name, comma)):
        return [f"Column '{name}' stays text: values such as '{example}' have a decimal comma; derive replace({cell}, ',', '.')::DOUBLE."]
    if _share(database, f"{gap} OR {looks} OR {zeros}") == 1 and (example := _example(database, name, zeros)):
        return [f"Column '{name}' stays text: values such as '{example}' begin with zeros, which a number would lose."]
    if _share(database, f"{gap} OR {looks}") == 1 and (example := _example(database, name, f"{looks} AND NOT {fits}")):
        return [f"Column '{name}' stays text: numbers such as {example} do not fit a 64-bit number exactly."]
    if _share(database, f"{gap} OR {looks}") >= 0.8 and (example := _example(database, name, f"NOT ({gap} OR {looks})")):
        advice = "a lenient cast to double makes such values missing"
        return [f"Column '{name}' stays text: most values are numbers, but not '{example}'; {advice}."]
    return []


def _digits(cell: str) -> str:
    """How many significant digits a decimal has, in SQL."""
    return f"length(regexp_replace(regexp_replace({cell}, '[eE].*', ''), '^[^1-9]+|[^0-9]', '', 'g'))"


def _share(database: Database, condition: str) -> float:
    """Of the sample's rows that meet the condition."""
    return float(database.row(f"SELECT coalesce(avg(CASE WHEN {condition} THEN 1.0 ELSE 0.0 END), 0) FROM sample")[0])


def _example(database: Database, name: str, condition: str) -> str:
    """The first cell that meets the condition, cut short; "" if there is none."""
    found = database.rows(f"SELECT {quoted(name)} FROM raw WHERE {condition} LIMIT 1")
    return str(found[0][0]).strip()[:40] if found else ""
