"""The step that fills gaps, with figures taken of the rows that have none."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.data.engine.columns import SPLIT, SQL_TYPES, Column, literal, quoted
from services.data.engine.step import WORDS, Made, Step, lacking, plural

NUMBERS = ("integer", "double")


def impute(step: Step, spec: Mapping[str, Any]) -> Made:
    strategy = spec.get("strategy", "")
    if strategy not in IMPUTED:
        raise step.refuse("strategy", "say how: mean, median, most_frequent or constant", list(IMPUTED))
    named = step.columns(spec.get("columns", []))
    for position, column in enumerate(named):
        if column.type not in IMPUTED[strategy]:
            fitting = "most_frequent or constant" if column.type != "image" else "drop_missing"
            raise step.refuse(f"columns[{position}]", f"'{column.name}' holds {plural(column)}, which have no {strategy}; take {fitting}")
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
