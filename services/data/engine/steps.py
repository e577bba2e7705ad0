"""The steps of a transform: each checks itself against the columns it meets and says, in SQL, what it does to the table.

A step is the JSON form of the proto's TransformStep with short enum values, e.g. {"impute": {"columns": [], "strategy": "mean"}}.
Checking needs no rows: the same code runs over an empty table to answer a wrong step at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from libs.errors import Invalid
from services.data.engine import expression
from services.data.engine.casting import cast
from services.data.engine.columns import ROW, SPLIT, SQL_TYPES, Column, check_name, literal, quoted
from services.data.engine.imputing import impute
from services.data.engine.splitting import split
from services.data.engine.step import WORDS, Made, Step, lacking, plural


def drop_missing(step: Step, spec: Mapping[str, Any]) -> Made:
    columns = step.columns(spec.get("columns", [])) or list(step.table.columns)
    kept = tuple(replace(column, nullable=False) if column in columns else column for column in step.table.columns)
    return step.select(where=" AND ".join(f"NOT {lacking(column)}" for column in columns)), kept


def dedupe(step: Step, spec: Mapping[str, Any]) -> Made:
    columns = step.columns(spec.get("columns", [])) or [
        # A picture under two names is the same picture.
        column
        for column in step.table.columns
        if not (step.table.of_pictures() and column.name == "path")
    ]
    same = ", ".join(quoted(column.name) for column in columns)
    return step.select(where=f"{ROW} IN (SELECT min({ROW}) FROM {step.table.name} GROUP BY {same})"), step.table.columns


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
        raise step.refuse("column", f"'{column.name}' holds {plural(column)}; values are mapped in texts: cast it to string first")
    values = spec.get("values") or {}
    if not values:
        raise step.refuse("values", "name at least one value and what it becomes")
    cell = quoted(column.name)
    before, after = ([literal(value) for value in side] for side in (values.keys(), values.values()))
    # One look-up for however many values; what is not named stays.
    mapped = f"coalesce(map([{', '.join(before)}], [{', '.join(after)}])[{cell}], {cell})"
    return step.select({column.name: mapped}), step.table.columns


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
