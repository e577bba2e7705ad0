"""The step that changes a column's type, and says which rows do not fit the new one."""

from collections.abc import Mapping
from typing import Any

from libs.errors import Invalid, Violation
from services.data.engine.columns import ROW, Column, quoted
from services.data.engine.step import WORDS, Made, Step, plural

TRUE_WORDS, FALSE_WORDS = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def cast(step: Step, spec: Mapping[str, Any]) -> Made:
    step.tables_only("cast")
    column = step.column(spec.get("column", ""), "column")
    target = spec.get("type", "")
    if target not in WORDS:
        raise step.refuse("type", "cast to double, integer, boolean, string or timestamp", list(WORDS))
    if (column.type, target) not in CASTS:
        raise step.refuse("type", f"'{column.name}' holds {plural(column)}, which do not become {target}; compute the column by derive")
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
