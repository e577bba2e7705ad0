"""The step that divides rows into train, validation and test: the same rows for the same seed, in every version of every library."""

from collections.abc import Mapping
from typing import Any

from services.data.engine.columns import ROW, SPLIT, Column, quoted
from services.data.engine.step import Made, Step

MAX_SPLIT_VALUES = 10_000


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
