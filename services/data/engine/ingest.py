"""An upload becomes typed Parquet with a profile, or an error that says what is wrong with it and where."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from services.data.engine import delimited, infer, json_lines
from services.data.engine.columns import Column, literal
from services.data.engine.database import PICTURE_WIDTH, Database, damaged, translate
from services.data.engine.limits import Limits
from services.data.engine.outcome import outcome
from services.data.engine.profile import profile
from services.data.engine.recognise import recognise

FORMATS = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "parquet": "Parquet", "zip": "ZIP"}


def ingest(job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """`job`: path, file_name. Writes all.parquet; answers format, kind, columns, rows, splits, notices and profile."""
    source = Path(job["path"])
    form = recognise(source, job.get("file_name", ""))
    database = Database(folder, limits)
    if form == "zip":
        return {"format": form, **_pictures(database, source, folder, limits)}
    select, columns, notices = _load_table(database, source, form, limits)
    target = folder / "all.parquet"
    with damaged("", "the values cannot be converted"):
        rows = database.write_parquet(select, target, width=len(columns))
    if form != "parquet":
        database.drop("raw", width=len(columns))
    described = _described(database, target, columns)
    return {"format": form, **outcome("table", columns, [("all", rows, target)], notices, described)}


def _described(database: Database, target: Path, columns: Sequence[Column]) -> dict[str, Any]:
    return profile(database, f"read_parquet({literal(str(target))})", columns)


def _load_table(database: Database, source: Path, form: str, limits: Limits) -> tuple[str, list[Column], list[str]]:
    """Makes "raw"; answers the SQL that types it, the columns and the notices."""
    if form == "parquet":
        # Loaded here because it takes 0.1 s, which the text formats need not wait for.
        from services.data.engine import parquet_file

        loaded = parquet_file.load(database, source, limits)
        return "SELECT * FROM raw", loaded.columns, loaded.notices
    if form == "jsonl":
        lines = json_lines.load(database, source, limits)
        typed, notices = infer.infer(database, lines.names, declared=lines.declared), lines.notices
    else:
        cells = delimited.load(database, source, form, limits)
        typed, notices = infer.infer(database, cells.names), cells.notices
    return f"SELECT {', '.join(typed.select)} FROM raw", typed.columns, notices + typed.notices


def _pictures(database: Database, source: Path, folder: Path, limits: Limits) -> dict[str, Any]:
    from services.data.engine import pictures

    archive, album = pictures.open_album(source, limits)
    target = folder / "all.parquet"
    with archive:
        failures: list[BaseException] = []

        def rows() -> Any:
            try:
                yield from pictures.batches(archive, album, limits)
            except BaseException as error:
                failures.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(pictures.SCHEMA, rows())
        database.connection.register("incoming", reader)
        try:
            # Pictures are compressed already.
            count = database.write_parquet("SELECT * FROM incoming", target, width=PICTURE_WIDTH, compression="uncompressed")
        except Exception as error:
            # DuckDB passes on the text of the exception only.
            raise (failures[0] if failures else translate(error) or error) from None
        database.connection.unregister("incoming")
    described = _described(database, target, pictures.COLUMNS)
    return outcome("images", list(pictures.COLUMNS), [("all", count, target)], album.notices, described)
