"""The steps of a transform: each checks itself against the columns it meets and says, in SQL, what it does to the table.

A step is the JSON form of the proto's TransformStep with short enum values, e.g. {"impute": {"columns": [], "strategy": "mean"}}.
Checking needs no rows: the same code runs over an empty table to answer a wrong step at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libs.errors import Invalid, Violation, near
from services.data.engine import expression
from services.data.engine.columns import ROW, SPLIT, SQL_TYPES, Column, check_name, literal, quoted
from services.data.engine.database import Database
from services.data.engine.limits import Limits

MAX_SPLIT_VALUES = 10_000
TRUE_WORDS, FALSE_WORDS = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
NUMBERS = ("integer", "double")
WORDS = {"double": "a number", "integer": "a whole number", "boolean": "true or false", "string": "a text", "timestamp": "a time"}


@dataclass(frozen=True)
class Table:
    """A table while it is worked on: its name in the database and its columns. ROW and SPLIT are there as well."""

    name: str
    columns: tuple[Column, ...]
    # No rows: only the steps are checked.
    dry: bool = False

    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def of_pictures(self) -> bool:
        return any(column.type == "image" for column in self.columns)

    def hidden(self) -> list[str]:
        """Columns that no SQL of a user may touch."""
        return [column.name for column in self.columns if column.type == "image"]


@dataclass(frozen=True)
class Step:
    """What one step needs to know of its surroundings."""

    database: Database
    table: Table
    path: str
    limits: Limits

    def refuse(self, field: str, message: str, suggestions: Sequence[str] = (), *, code: str = "invalid_spec") -> Invalid:
        where = f"{self.path}.{field}" if field else self.path
        return Invalid.of([Violation(where, message, tuple(suggestions))], code=code)

    def column(self, name: str, field: str) -> Column:
        """By its exact name, or an error with near ones."""
        for column in self.table.columns:
            if column.name == name:
                return column
        suggestions = near(name, self.table.names())
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else f"; there are {', '.join(self.table.names()[:10])}"
        raise self.refuse(field, f"there is no column '{name}'{hint}", suggestions)

    def columns(self, names: Sequence[str]) -> list[Column]:
        return [self.column(name, f"columns[{position}]") for position, name in enumerate(names)]

    def tables_only(self, verb: str) -> None:
        if self.table.of_pictures():
            raise self.refuse(
                "", f"pictures keep their columns image, label and path, so nothing is {verb}; labels change by map_values or derive"
            )

    def select(self, columns: Mapping[str, str] | None = None, *, where: str = "") -> str:
        """SQL for the whole table with some columns computed anew, in the order of rows."""
        columns = columns or {}
        listed = [f"{columns[name]} AS {quoted(name)}" if name in columns else quoted(name) for name in self.table.names()]
        return f"SELECT {', '.join([*listed, ROW, SPLIT])} FROM {self.table.name}{f' WHERE {where}' if where else ''}"


# What a step makes: SQL for the next table, and its columns.
Made = tuple[str, tuple[Column, ...]]


def lacking(column: Column) -> str:
    """SQL: the row has no usable value there. NaN is none."""
    cell = quoted(column.name)
    return f"({cell} IS NULL OR isnan({cell}))" if column.type == "double" else f"({cell} IS NULL)"


def drop_missing(step: Step, spec: Mapping[str, Any]) -> Made:
    columns = step.columns(spec.get("columns", [])) or list(step.table.columns)
    kept = tuple(replace(column, nullable=False) if column in columns else column for column in step.table.columns)
    return step.select(where=" AND ".join(f"NOT {lacking(column)}" for column in columns)), kept


def impute(step: Step, spec: Mapping[str, Any]) -> Made:
    strategy = spec.get("strategy", "")
    if strategy not in IMPUTED:
        raise step.refuse("strategy", "say how: mean, median, most_frequent or constant", list(IMPUTED))
    named = step.columns(spec.get("columns", []))
    for position, column in enumerate(named):
        if column.type not in IMPUTED[strategy]:
            fitting = "most_frequent or constant" if column.type != "image" else "drop_missing"
            raise step.refuse(f"columns[{position}]", f"'{column.name}' holds {_plural(column)}, which have no {strategy}; take {fitting}")
    value = _constant(step, named, spec) if strategy == "constant" else None
    if strategy != "constant" and spec.get("value") is not None:
        raise step.refuse("value", f"a value goes with the strategy constant, not with {strategy}")
    suited = [column for column in step.table.columns if column.type in IMPUTED[strategy] and (value is None or _holds(column, value))]
    columns = named or suited
    gaps = _gaps(step, columns)
    fills: dict[str, str] = {}
    changed: dict[str, Column] = {}
    for column in columns:
        if not named and not gaps[column.name] and not step.table.dry:
            continue
        fill, type_ = _fill(step, column, strategy, value)
        cell = f"CAST({quoted(column.name)} AS {SQL_TYPES[type_]})"
        fills[column.name] = f"CASE WHEN {lacking(column)} THEN {fill} ELSE {cell} END"
        changed[column.name] = Column(column.name, type_)
    return step.select(fills), tuple(changed.get(column.name, column) for column in step.table.columns)


IMPUTED = {
    "mean": NUMBERS,
    "median": NUMBERS,
    "most_frequent": ("double", "integer", "boolean", "string", "timestamp"),
    "constant": ("double", "integer", "boolean", "string", "timestamp"),
}


def _plural(column: Column) -> str:
    words = {
        "double": "numbers",
        "integer": "whole numbers",
        "boolean": "truth values",
        "string": "texts",
        "timestamp": "times",
        "image": "pictures",
    }
    return words[column.type]


def _gaps(step: Step, columns: Sequence[Column]) -> dict[str, bool]:
    if not columns:
        return {}
    found = step.database.row(f"SELECT {', '.join(f'bool_or{lacking(column)}' for column in columns)} FROM {step.table.name}")
    return {column.name: bool(gap) for column, gap in zip(columns, found, strict=True)}


def _fill(step: Step, column: Column, strategy: str, value: Any) -> tuple[str, str]:
    """SQL of the value for the gaps, and the column's type after it."""
    if strategy == "constant":
        return f"CAST({literal(_spelled(value))} AS {SQL_TYPES[column.type]})", column.type
    type_ = "double" if strategy in ("mean", "median") else column.type
    cell = quoted(column.name)
    figure = {"mean": f"avg(CAST({cell} AS DOUBLE))", "median": f"median(CAST({cell} AS DOUBLE))", "most_frequent": ""}[strategy]
    # Figures come of the training rows where there are such: those of the test must not leak into them.
    source = step.table.name
    rows = f"{source} WHERE NOT {lacking(column)} AND ({SPLIT} = 'train' OR NOT EXISTS (FROM {source} WHERE {SPLIT} = 'train'))"
    asked = (
        f"SELECT {figure} FROM {rows}" if figure else f"SELECT {cell} FROM {rows} GROUP BY {cell} ORDER BY count(*) DESC, {cell} LIMIT 1"
    )
    found = step.database.rows(f"SELECT CAST(({asked}) AS VARCHAR)")[0][0]
    if found is None:
        if not step.table.dry:
            raise step.refuse(
                "columns", f"column '{column.name}' holds no value from which to take the {strategy}; drop it or use constant"
            )
        return "NULL", type_
    return f"CAST({literal(found)} AS {SQL_TYPES[type_]})", type_


def _constant(step: Step, columns: Sequence[Column], spec: Mapping[str, Any]) -> Any:
    value = spec.get("value")
    if value is None or isinstance(value, (dict, list)):
        raise step.refuse("value", "the strategy constant needs a value: a number, a text, true or false")
    for column in columns:
        if not _holds(column, value) or not _castable(step, column, value):
            raise step.refuse("value", f"{value!r} is not {WORDS[column.type]}, as column '{column.name}' holds")
    return value


def _holds(column: Column, value: Any) -> bool:
    """JSON has fewer types than columns: 3.0 is a whole number, a time is a text."""
    if isinstance(value, bool):
        return column.type == "boolean"
    if isinstance(value, (int, float)):
        return column.type == "double" or (column.type == "integer" and float(value).is_integer())
    return column.type in ("string", "timestamp")


def _castable(step: Step, column: Column, value: Any) -> bool:
    return step.database.row(f"SELECT TRY_CAST({literal(_spelled(value))} AS {SQL_TYPES[column.type]}) IS NOT NULL")[0] is True


def _spelled(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def dedupe(step: Step, spec: Mapping[str, Any]) -> Made:
    columns = step.columns(spec.get("columns", [])) or [
        # A picture under two names is the same picture.
        column
        for column in step.table.columns
        if not (step.table.of_pictures() and column.name == "path")
    ]
    same = ", ".join(quoted(column.name) for column in columns)
    return step.select(where=f"{ROW} IN (SELECT min({ROW}) FROM {step.table.name} GROUP BY {same})"), step.table.columns


def cast(step: Step, spec: Mapping[str, Any]) -> Made:
    step.tables_only("cast")
    column = step.column(spec.get("column", ""), "column")
    target = spec.get("type", "")
    if target not in WORDS:
        raise step.refuse("type", "cast to double, integer, boolean, string or timestamp", list(WORDS))
    if (column.type, target) not in CASTS:
        raise step.refuse("type", f"'{column.name}' holds {_plural(column)}, which do not become {target}; compute the column by derive")
    cell = quoted(column.name)
    converted = CASTS[column.type, target].replace("{c}", cell)
    lenient = bool(spec.get("lenient", False))
    if not lenient:
        _refuse_misfits(step, column, target, converted)
    changed = Column(column.name, target, nullable=column.nullable or lenient)
    return step.select({column.name: converted}), tuple(changed if one is column else one for one in step.table.columns)


_YES, _NO = (", ".join(f"'{word}'" for word in words) for words in (TRUE_WORDS, FALSE_WORDS))
_WHOLE = "CASE WHEN {d} = trunc({d}) AND abs({d}) <= 9007199254740992 THEN CAST({d} AS BIGINT) END"
# From and to: SQL that gives NULL for what does not fit without loss.
CASTS = {
    **{(type_, type_): "{c}" for type_ in WORDS},
    **{(type_, "string"): "CAST({c} AS VARCHAR)" for type_ in WORDS},
    ("string", "integer"): "coalesce(CASE WHEN regexp_full_match(trim({c}), '[+-]?[0-9]+') THEN TRY_CAST(trim({c}) AS BIGINT) END, "
    + _WHOLE.replace("{d}", "TRY_CAST(trim({c}) AS DOUBLE)")
    + ")",
    ("string", "double"): "TRY_CAST(trim({c}) AS DOUBLE)",
    ("string", "boolean"): f"CASE WHEN lower(trim({{c}})) IN ({_YES}) THEN TRUE WHEN lower(trim({{c}})) IN ({_NO}) THEN FALSE END",
    ("string", "timestamp"): "coalesce(TRY_CAST(trim({c}) AS TIMESTAMP), CAST(TRY_CAST(trim({c}) AS TIMESTAMPTZ) AS TIMESTAMP))",
    ("integer", "double"): "CASE WHEN abs(CAST({c} AS HUGEINT)) <= 9007199254740992 THEN CAST({c} AS DOUBLE) END",
    ("double", "integer"): _WHOLE.replace("{d}", "{c}"),
    ("integer", "boolean"): "CASE {c} WHEN 1 THEN TRUE WHEN 0 THEN FALSE END",
    ("double", "boolean"): "CASE {c} WHEN 1 THEN TRUE WHEN 0 THEN FALSE END",
    ("boolean", "integer"): "CAST({c} AS BIGINT)",
    ("boolean", "double"): "CAST({c} AS DOUBLE)",
}


def _refuse_misfits(step: Step, column: Column, target: str, converted: str) -> None:
    cell = quoted(column.name)
    misfit = f"{cell} IS NOT NULL AND ({converted}) IS NULL"
    found = step.database.rows(
        f"SELECT {ROW} + 1, left(CAST({cell} AS VARCHAR), 60) FROM {step.table.name} WHERE {misfit} ORDER BY {ROW} LIMIT 20"
    )
    if found:
        count = step.database.row(f"SELECT count(*) FROM {step.table.name} WHERE {misfit}")[0]
        shown = [
            Violation(f"{step.path}.column", f"row {row} of the source holds '{value}', which is not {WORDS[target]}")
            for row, value in found
        ]
        more = f", nor do {count - 1} other rows fit" if count > 1 else ""
        raise Invalid(
            f"{shown[0].field}: {shown[0].message}{more}; lenient makes them missing",
            code="invalid_data",
            errors=shown,
            meta={"rows": count},
        )


def filter_rows(step: Step, spec: Mapping[str, Any]) -> Made:
    kept = _expression(step, spec)
    if kept.type != "boolean":
        raise step.refuse(
            "expression", f"gives {WORDS[kept.type]}, not true or false; compare it, e.g. {spec['expression'].strip()[:40]} > 0"
        )
    return step.select(where=kept.sql), step.table.columns


def derive(step: Step, spec: Mapping[str, Any]) -> Made:
    name = spec.get("column", "")
    if problem := check_name(name, f"{step.path}.column", step.limits):
        raise Invalid.of([problem], code="invalid_spec")
    if step.table.of_pictures() and name not in ("label", "path"):
        raise step.refuse("column", "of pictures only label and path can be derived", ["label", "path"])
    _refuse_case_twin(step, name, "column")
    computed = _expression(step, spec)
    if step.table.of_pictures() and computed.type != "string":
        raise step.refuse("expression", f"gives {WORDS[computed.type]}; {name} holds texts: CAST(... AS VARCHAR)")
    value = f"CAST({computed.sql} AS {SQL_TYPES[computed.type]})"
    made = Column(name, computed.type, nullable=True)
    if name in step.table.names():
        return step.select({name: value}), tuple(made if one.name == name else one for one in step.table.columns)
    listed = ", ".join([*map(quoted, step.table.names()), f"{value} AS {quoted(name)}", ROW, SPLIT])
    return f"SELECT {listed} FROM {step.table.name}", (*step.table.columns, made)


def _expression(step: Step, spec: Mapping[str, Any]) -> expression.Expression:
    where = f"{step.path}.expression"
    return expression.check(
        step.database, step.table.name, step.table.columns, spec.get("expression", ""), where, hidden=step.table.hidden()
    )


def _refuse_case_twin(step: Step, name: str, field: str) -> None:
    for other in step.table.names():
        if other != name and other.casefold() == name.casefold():
            raise step.refuse(
                field, f"there is a column '{other}', and names may not differ in case only; take '{other}' or another name", [other]
            )


def rename(step: Step, spec: Mapping[str, Any]) -> Made:
    step.tables_only("renamed")
    column = step.column(spec.get("column", ""), "column")
    to = spec.get("to", "")
    if problem := check_name(to, f"{step.path}.to", step.limits):
        raise Invalid.of([problem], code="invalid_spec")
    others = {name.casefold(): name for name in step.table.names() if name != column.name}
    if taken := others.get(to.casefold()):
        raise step.refuse("to", f"there is a column '{taken}' already; take another name or drop that one first")
    listed = [f"{quoted(name)} AS {quoted(to)}" if name == column.name else quoted(name) for name in step.table.names()]
    renamed = tuple(replace(one, name=to) if one is column else one for one in step.table.columns)
    return f"SELECT {', '.join([*listed, ROW, SPLIT])} FROM {step.table.name}", renamed


def drop_columns(step: Step, spec: Mapping[str, Any]) -> Made:
    step.tables_only("dropped")
    if not spec.get("columns"):
        raise step.refuse("columns", "name the columns to drop")
    dropped = step.columns(spec["columns"])
    kept = tuple(column for column in step.table.columns if column not in dropped)
    if not kept:
        raise step.refuse("columns", "these are all columns; leave at least one")
    return f"SELECT {', '.join([*(quoted(column.name) for column in kept), ROW, SPLIT])} FROM {step.table.name}", kept


def map_values(step: Step, spec: Mapping[str, Any]) -> Made:
    column = step.column(spec.get("column", ""), "column")
    if column.type != "string":
        raise step.refuse("column", f"'{column.name}' holds {_plural(column)}; values are mapped in texts: cast it to string first")
    values = spec.get("values") or {}
    if not values:
        raise step.refuse("values", "name at least one value and what it becomes")
    cell = quoted(column.name)
    before, after = ([literal(value) for value in side] for side in (values.keys(), values.values()))
    # One look-up for however many values; what is not named stays.
    mapped = f"coalesce(map([{', '.join(before)}], [{', '.join(after)}])[{cell}], {cell})"
    return step.select({column.name: mapped}), step.table.columns


def split(step: Step, spec: Mapping[str, Any]) -> Made:
    test, validation, seed = float(spec.get("test", 0)), float(spec.get("validation", 0)), int(spec.get("seed", 0))
    if not (0 <= test < 1 and 0 <= validation < 1 and test + validation < 1):
        raise step.refuse(
            "test", f"test ({test:g}) and validation ({validation:g}) together must be less than 1, so that rows are left for training"
        )
    if test == validation == 0:
        raise step.refuse("test", "give test or validation a share of the rows, e.g. 0.2")
    by = "''"
    if stratify := spec.get("stratify", ""):
        column = step.column(stratify, "stratify")
        if column.type == "image":
            raise step.refuse("stratify", "pictures are all different; stratify by label", ["label"])
        _refuse_too_many_values(step, column)
        by = f"coalesce(CAST({quoted(column.name)} AS VARCHAR), '')"
    # Rows stand in random order inside their group, and every k-th is taken: shares hold overall and, to one row, in each group.
    # MD5 stays the same for ever, unlike the random numbers of a library.
    order = f"{by}, md5('{seed}:' || {ROW}::VARCHAR), {ROW}"
    shuffled = f"SELECT {ROW} AS row, row_number() OVER (ORDER BY {order}) - 1 AS position FROM {step.table.name}"
    tested = f"SELECT row, position, floor((position + 1) * {test!r} + 0.5) > floor(position * {test!r} + 0.5) AS test FROM ({shuffled})"
    share = validation / (1 - test)
    rest = f"SELECT row, test, row_number() OVER (PARTITION BY test ORDER BY position) - 1 AS position FROM ({tested})"
    held = f"floor((position + 1) * {share!r} + 0.5) > floor(position * {share!r} + 0.5)"
    named = f"SELECT row, CASE WHEN test THEN 'test' WHEN {held} THEN 'validation' ELSE 'train' END AS split FROM ({rest})"
    listed = ", ".join([*(f"t.{quoted(name)}" for name in step.table.names()), f"t.{ROW}", f"s.split AS {SPLIT}"])
    return f"SELECT {listed} FROM {step.table.name} t JOIN ({named}) s ON s.row = t.{ROW} ORDER BY t.{ROW}", step.table.columns


def _refuse_too_many_values(step: Step, column: Column) -> None:
    found, rows = step.database.row(f"SELECT approx_count_distinct({quoted(column.name)}), count(*) FROM {step.table.name}")
    if found > MAX_SPLIT_VALUES or (rows > 20 and found > rows / 2):
        raise step.refuse(
            "stratify", f"'{column.name}' has about {found} different values in {rows} rows; stratify by a column of few values"
        )


STEPS: dict[str, Callable[[Step, Mapping[str, Any]], Made]] = {
    "drop_missing": drop_missing,
    "impute": impute,
    "dedupe": dedupe,
    "cast": cast,
    "filter": filter_rows,
    "derive": derive,
    "rename": rename,
    "drop_columns": drop_columns,
    "map_values": map_values,
    "split": split,
}
