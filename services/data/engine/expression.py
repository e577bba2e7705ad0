"""Which SQL expressions a step may hold: one value computed from one row's columns. Anything else is refused in words.

DuckDB parses; this module walks its syntax tree and asks DuckDB to bind what is left. Nothing is evaluated here.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from libs.errors import Invalid, Violation, near
from services.data.engine.columns import Column, quoted
from services.data.engine.database import Database, first_line

PREFIX = "SELECT (\n"
REFUSED_NODES = {
    "SUBQUERY": "holds a query of its own; an expression sees the columns of one row",
    "WINDOW": "holds a window function; an expression sees the columns of one row",
    "STAR": "holds *; name the columns",
    "PARAMETER": "holds a parameter ($1 or ?); write the value",
    "DEFAULT": "holds DEFAULT; write the value",
    "POSITIONAL_REFERENCE": "refers to a column by number; name it",
    "LAMBDA": "holds a lambda; use functions of single values",
}
# Written without parentheses, they look like columns.
CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "now", "today"}
# Written in SQL inside DuckDB, and harmless.
MACROS = {
    "nullif",
    "if",
    "split_part",
    "fmod",
    "fdiv",
    "days_in_month",
    "list_sum",
    "list_avg",
    "list_min",
    "list_max",
    "list_first",
    "list_last",
}
# Pure by DuckDB's own account, but of no use or with an eye on the outside.
REFUSED_FUNCTIONS = {"row", "struct_pack", "hash", "getenv", "error", "sleep_ms"}
TYPES = (
    ("boolean", re.compile(r"BOOLEAN")),
    ("integer", re.compile(r"U?(TINY|SMALL|BIG)?INT(EGER)?|HUGEINT|UHUGEINT|UINTEGER|BIGNUM|DECIMAL\(\d+,0\)")),
    ("double", re.compile(r"DOUBLE|FLOAT|DECIMAL\(\d+,\d+\)")),
    ("timestamp", re.compile(r"DATE|TIMESTAMP( WITH TIME ZONE|_S|_MS|_NS)?")),
    ("string", re.compile(r"VARCHAR|UUID|TIME|ENUM\(.*\)")),
)


@dataclass(frozen=True)
class Expression:
    """A checked expression: SQL that can stand anywhere in a select list over the columns, and the type it gives."""

    sql: str
    type: str


def check(database: Database, table: str, columns: Sequence[Column], text: str, where: str, *, hidden: Sequence[str] = ()) -> Expression:
    """Raises Invalid at `where` for what is no single value over the columns; `hidden` are columns that SQL may not touch."""
    if not text.strip():
        raise _refuse(where, "the expression is empty; write one such as radius_mean > 0")
    statement = f"{PREFIX}{text}\n) AS value FROM {table}"
    tree = _parse(database, statement, text, where)
    _check_nodes(database, tree, columns, where, hidden)
    return Expression(f"({text}\n)", _type(database, statement, where))


def _refuse(where: str, message: str, suggestions: Sequence[str] = ()) -> Invalid:
    return Invalid.of([Violation(where, message, tuple(suggestions))], code="invalid_spec")


def _parse(database: Database, statement: str, text: str, where: str) -> dict[str, Any]:
    """The syntax tree of the expression alone."""
    parsed = json.loads(database.row("SELECT json_serialize_sql(?)", [statement])[0])
    if parsed["error"]:
        raise _refuse(where, _syntax(parsed, text))
    statements = parsed["statements"]
    node = statements[0]["node"] if len(statements) == 1 else {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["select_list"][0].get("alias") == "value"
        and node["from_table"].get("type") == "BASE_TABLE"
        and not (
            node["where_clause"] or node["group_expressions"] or node["having"] or node["qualify"] or node["sample"] or node["modifiers"]
        )
        and not node["cte_map"]["map"]
    )
    if not plain:
        raise _refuse(where, "must be one expression such as radius_mean > 0, without SELECT, FROM, WHERE or ';'")
    return dict(node["select_list"][0])


def _syntax(parsed: dict[str, Any], text: str) -> str:
    """DuckDB's complaint with the place in the user's own text."""
    message = str(parsed["error_message"]).splitlines()[0]
    # Positions count bytes.
    at = int(parsed.get("position") or 0) - len(PREFIX)
    before = text.encode()[: max(at, 0)].decode(errors="ignore")
    if at >= len(text.encode()):
        return "the expression ends too early; is a value, a quote or a parenthesis missing at its end?"
    found = text[len(before) : len(before) + 20].split("\n")[0]
    hint = "; column names with spaces or dashes need double quotes, texts single quotes" if re.search(r"\w\s+\w", text) else ""
    return f"cannot be read at character {len(before) + 1}, '{found}' ({message}){hint}"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _check_nodes(database: Database, tree: dict[str, Any], columns: Sequence[Column], where: str, hidden: Sequence[str]) -> None:
    for node in _nodes(tree):
        kind = node["class"]
        if kind in REFUSED_NODES:
            raise _refuse(where, REFUSED_NODES[kind])
        if kind == "COLUMN_REF":
            _check_column(node["column_names"], columns, where, hidden)
        elif kind == "FUNCTION":
            _check_function(database, str(node["function_name"]).lower(), where)


def _check_column(path: Sequence[str], columns: Sequence[Column], where: str, hidden: Sequence[str]) -> None:
    name = ".".join(path)
    known = {column.name.casefold() for column in columns}
    if len(path) == 1 and path[0].casefold() in known:
        if path[0].casefold() in {column.casefold() for column in hidden}:
            raise _refuse(where, f"column '{name}' holds pictures, over which there is no SQL; use label or path")
        return
    if name.lower() in CLOCKS:
        raise _refuse(
            where, f"'{name}' is different every time, and a version must be reproducible; write the time, e.g. DATE '2026-01-31'"
        )
    suggestions = near(name, [column.name for column in columns if column.name not in hidden])
    hint = f"; did you mean {' or '.join(quoted(suggestion) for suggestion in suggestions)}?" if suggestions else ""
    if not hint:
        hint = f"; a text needs single quotes: '{name}'" if len(path) == 1 else "; write a column's name alone, without a table"
    raise _refuse(where, f"there is no column '{name}'{hint}", suggestions)


def _check_function(database: Database, name: str, where: str) -> None:
    kinds = _functions(database)
    if (name in kinds["scalar"] or name in MACROS) and name not in REFUSED_FUNCTIONS:
        return
    if name in kinds["changing"]:
        raise _refuse(where, f"function {name} may give another value every time, and a version must be reproducible; leave it out")
    if name in kinds["aggregate"]:
        raise _refuse(where, f"function {name} needs many rows; an expression sees the columns of one row")
    if name == "row":
        raise _refuse(where, "gives several values; write one expression without commas at its top")
    suggestions = near(name, kinds["scalar"] | MACROS)
    hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
    known = name in kinds["other"] or name in REFUSED_FUNCTIONS
    raise _refuse(where, f"function {name} {'is not allowed here' if known else 'does not exist'}{hint}", suggestions)


_FUNCTIONS: dict[str, set[str]] = {}


def _functions(database: Database) -> dict[str, set[str]]:
    """Names of DuckDB's functions by what they are; asked once a process."""
    if not _FUNCTIONS:
        found = database.rows("SELECT DISTINCT function_name, function_type, coalesce(stability, '') FROM duckdb_functions()")
        scalar = {name for name, kind, stability in found if kind == "scalar" and stability == "CONSISTENT"}
        changing = {name for name, kind, stability in found if kind == "scalar" and stability != "CONSISTENT"}
        aggregate = {name for name, kind, _ in found if kind in ("aggregate", "window")} | {"count_star"}
        _FUNCTIONS.update(scalar=scalar - changing, changing=changing, aggregate=aggregate - scalar, other={name for name, _, _ in found})
    return _FUNCTIONS


def _type(database: Database, statement: str, where: str) -> str:
    try:
        found = str(database.row(f"DESCRIBE {statement}")[1])
    except duckdb.Error as error:
        message = first_line(error).replace(" - an explicit cast is required", "; cast one of them, e.g. CAST(x AS DOUBLE)")
        raise _refuse(where, f"does not work out: {message}") from error
    for type_, pattern in TYPES:
        if pattern.fullmatch(found):
            return type_
    if found.strip('"') == "NULL":
        raise _refuse(where, "gives no value at all; say the type, e.g. CAST(NULL AS DOUBLE)")
    raise _refuse(where, f"gives {found}, which no column can hold; give a number, a truth value, a text or a time")
