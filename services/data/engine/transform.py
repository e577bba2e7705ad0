"""Runs the steps of a transform over a version's splits, or checks them without rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from libs.errors import Invalid, Violation
from services.data.engine.columns import ROW, SPLIT, SQL_TYPES, Column, literal, quoted
from services.data.engine.database import PICTURE_WIDTH, Database, first_line, translate
from services.data.engine.limits import Limits
from services.data.engine.outcome import outcome
from services.data.engine.profile import profile
from services.data.engine.step import Step, Table
from services.data.engine.steps import STEPS

ORDER = {"all": 0, "train": 0, "validation": 1, "test": 2}


def transform(job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """`job`: columns, splits [{name, path}], steps. Writes a Parquet file a split; answers as `ingest` does."""
    sources = [(split["name"], Path(split["path"])) for split in job["splits"]]
    columns = tuple(Column.from_json(column) for column in job["columns"])
    database = Database(folder, limits)
    database.confine(*(path for _, path in sources))
    table = _source(database, columns, sources)
    before = _rows(database, table)
    for number, step in enumerate(job["steps"]):
        table = _apply(database, table, step, number, len(job["steps"]), limits)
    after = _rows(database, table)
    splits = _write(database, table, folder, sources)
    written = f"read_parquet([{', '.join(literal(str(path)) for _, _, path in splits)}])"
    described = profile(database, written, table.columns)
    columns = tuple(replace(column, nullable=entry["nulls"] > 0) for column, entry in zip(table.columns, described["columns"], strict=True))
    notices = [f"{before - after} of {before} rows were left out."] if after < before else []
    return outcome("images" if table.of_pictures() else "table", list(columns), splits, notices, described)


def check(job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """`job`: columns, steps. Answers the columns after the steps; raises Invalid for the first step that is wrong."""
    database = Database(folder, limits)
    database.confine()
    columns = tuple(Column.from_json(column) for column in job["columns"])
    hidden = [Column(ROW, "integer"), Column(SPLIT, "string")]
    listed = ", ".join(f"CAST(NULL AS {SQL_TYPES[column.type]}) AS {quoted(column.name)}" for column in (*columns, *hidden))
    table = Table("step_0", columns, dry=True)
    database.keep(table.name, f"SELECT {listed} LIMIT 0", width=table.width)
    for number, step in enumerate(job["steps"]):
        table = _apply(database, table, step, number, len(job["steps"]), limits)
    return {"columns": [column.to_json() for column in table.columns]}


def _source(database: Database, columns: Sequence[Column], sources: Sequence[tuple[str, Path]]) -> Table:
    """All splits one below the other, each row with its number and its split. For a picture stands its MD5: the steps tell pictures apart,
    and never look into them."""
    listed = ", ".join(
        f"md5({quoted(column.name)}) AS {quoted(column.name)}" if column.type == "image" else quoted(column.name) for column in columns
    )
    table = Table("step_0", tuple(columns))
    database.keep(table.name, f"SELECT {listed}, {ROW}, {SPLIT} FROM ({_numbered(database, sources)})", width=table.width)
    return table


def _numbered(database: Database, sources: Sequence[tuple[str, Path]]) -> str:
    parts, begin = [], 0
    for name, path in sources:
        file = f"read_parquet({literal(str(path))}, file_row_number = true)"
        parts.append(f"SELECT * EXCLUDE (file_row_number), file_row_number + {begin} AS {ROW}, {literal(name)} AS {SPLIT} FROM {file}")
        begin += int(database.row(f"SELECT count(*) FROM {file}")[0])
    return " UNION ALL ".join(parts)


def _apply(database: Database, table: Table, step: Mapping[str, Any], number: int, count: int, limits: Limits) -> Table:
    kinds = [kind for kind in step if kind in STEPS]
    if len(kinds) != 1:
        raise Invalid.of([Violation(f"steps[{number}]", f"name one of {', '.join(STEPS)}", tuple(STEPS))], code="invalid_spec")
    kind = kinds[0]
    path = f"steps[{number}].{kind}"
    if kind == "split" and number != count - 1:
        raise Invalid.of([Violation(path, "splitting must be the last step; move it to the end")], code="invalid_spec")
    context = Step(database, table, path, limits)
    sql, columns = STEPS[kind](context, step[kind] or {})
    made = Table(f"step_{number + 1}", columns, table.dry)
    try:
        database.keep(made.name, sql, width=made.width)
    except duckdb.Error as error:
        if known := translate(error):
            raise known from error
        field = "expression" if "expression" in (step[kind] or {}) else ""
        raise context.refuse(field, _failed(error), code="invalid_data") from error
    database.drop(table.name, width=table.width)
    if not table.dry and not _rows(database, made):
        raise context.refuse("", "leaves no row; loosen it", code="invalid_data")
    if kind == "split" and not table.dry:
        _refuse_empty_splits(database, made, context, step[kind])
    return made


def _failed(error: duckdb.Error) -> str:
    hint = "; TRY_CAST gives a missing value instead" if isinstance(error, duckdb.ConversionException) else ""
    return f"fails on a row: {first_line(error)}{hint}"


def _rows(database: Database, table: Table) -> int:
    return int(database.row(f"SELECT count(*) FROM {table.name}")[0])


def _refuse_empty_splits(database: Database, table: Table, context: Step, spec: Mapping[str, Any]) -> None:
    there = {row[0] for row in database.rows(f"SELECT DISTINCT {SPLIT} FROM {table.name}")}
    wanted = {"train"} | {name for name in ("test", "validation") if float(spec.get(name, 0))}
    for name in sorted(wanted - there):
        raise context.refuse(
            "test" if name == "train" else name,
            f"no row of {_rows(database, table)} is left for {name}; change the shares",
            code="invalid_data",
        )


def _write(database: Database, table: Table, folder: Path, sources: Sequence[tuple[str, Path]]) -> list[tuple[str, int, Path]]:
    names = [row[0] for row in database.rows(f"SELECT DISTINCT {SPLIT} FROM {table.name}")]
    listed = ", ".join(f"{'s' if column.type == 'image' else 't'}.{quoted(column.name)}" for column in table.columns)
    pictures = f" JOIN ({_numbered(database, sources)}) s ON s.{ROW} = t.{ROW}" if table.of_pictures() else ""
    written = []
    for name in sorted(names, key=lambda name: (ORDER.get(name, 3), name)):
        target = folder / f"{name}.parquet"
        select = f"SELECT {listed} FROM {table.name} t{pictures} WHERE t.{SPLIT} = {literal(name)} ORDER BY t.{ROW}"
        compression, width = ("uncompressed", PICTURE_WIDTH) if table.of_pictures() else ("zstd", table.width)
        rows = database.write_parquet(select, target, width=width, compression=compression)
        written.append((name, rows, target))
    return written
