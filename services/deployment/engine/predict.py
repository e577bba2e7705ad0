"""From Parquet files to parts with predictions. Knows no platform: a folder, a model package, files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from libs.errors import AppError, Invalid
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.runtime import Runtime, load_any
from libs.modelkit.tables import column_type
from services.deployment.engine.brought import Brought
from services.deployment.engine.trained import Trained


@dataclass(frozen=True)
class Part:
    """Rows of a split from `start` to before `stop`."""

    number: int
    split: str
    start: int
    stop: int


def predict(folder: Path, spec: Mapping[str, Any]) -> None:
    """Makes the parts of `spec` (README.md) below `folder`/parts. Raises Invalid where the data is not what the model reads."""
    runtime, parts = _load(spec), [Part(**part) for part in spec["parts"]]
    try:
        writer = _Writer(folder / "parts", _model(runtime, spec), spec["columns"])
        for split in spec["splits"]:
            wanted = sorted((part for part in parts if part.split == split["name"]), key=lambda part: part.start)
            if wanted:
                _predict_split(writer, folder / split["path"], wanted)
    finally:
        runtime.close()


def _load(spec: Mapping[str, Any]) -> Runtime | CodeRuntime:
    try:
        return load_any(spec["package"], spec["threads"], spec["memory_bytes"])
    except Invalid:
        raise
    except AppError as error:
        # It was slow, or said nonsense: a caller of an endpoint may ask again, and here another process would end the same.
        raise AppError(error.detail, code="process_failed") from error


def _model(runtime: Runtime | CodeRuntime, spec: Mapping[str, Any]) -> Trained | Brought:
    if isinstance(runtime, CodeRuntime):
        return Brought(runtime, spec["added"], probabilities=spec["probabilities"])
    return Trained(runtime, probabilities=spec["probabilities"])


def _predict_split(writer: "_Writer", path: Path, parts: Sequence[Part]) -> None:
    file, model = pq.ParquetFile(path, memory_map=True), writer.model
    model.check(file.schema_arrow, parts[-1].split)
    rows = _Rows(file, writer.read_names(file.schema_arrow), parts[0].start, model.batch_rows)
    for part in parts:
        rows.skip_to(part.start)
        writer.write(part, rows.take(part.stop - part.start))


class _Rows:
    """The rows of a file from `start` on, in order, cut as they are asked for: one pass, a row group's batch in memory at a time."""

    def __init__(self, file: pq.ParquetFile, columns: list[str], start: int, batch_rows: int) -> None:
        first, self._at = _row_group_of(file, start)
        groups = list(range(first, file.num_row_groups))
        self._batches: Iterator[pa.RecordBatch] = file.iter_batches(batch_rows, row_groups=groups, columns=columns)
        self._batch_rows = batch_rows
        self._left: pa.Table | None = None
        self.skip_to(start)

    def skip_to(self, row: int) -> None:
        while self._at < row:
            self._next(min(self._batch_rows, row - self._at))

    def take(self, rows: int) -> Iterator[pa.Table]:
        """Batches of one size from here on, whatever the file's own are: the same part has the same bytes."""
        while rows:
            batch = self._next(min(self._batch_rows, rows))
            rows -= batch.num_rows
            yield batch

    def _next(self, rows: int) -> pa.Table:
        held = [] if self._left is None else [self._left]
        have = sum(table.num_rows for table in held)
        while have < rows:
            held.append(pa.Table.from_batches([next(self._batches)]))
            have += held[-1].num_rows
        table = pa.concat_tables(held) if len(held) > 1 else held[0]
        self._left = table.slice(rows) if have > rows else None
        self._at += rows
        return table.slice(0, rows)


def _row_group_of(file: pq.ParquetFile, row: int) -> tuple[int, int]:
    """The row group that holds the row, and its first row."""
    begin = 0
    for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if begin + rows > row:
            return number, begin
        begin += rows
    raise Invalid(f"the file has {begin} rows, and row {row + 1} is wanted", code="invalid_data")


class _Writer:
    """Writes parts: each whole, or not at all."""

    def __init__(self, folder: Path, model: Trained | Brought, keep: Sequence[str]) -> None:
        self._folder, self.model, self._keep = folder, model, list(keep)
        folder.mkdir(exist_ok=True)

    def read_names(self, schema: pa.Schema) -> list[str]:
        return list(dict.fromkeys([*self._keep, *(name for name in self.model.inputs if name in schema.names)]))

    def write(self, part: Part, batches: Iterator[pa.Table]) -> None:
        target = self._folder / f"{part.number:06d}.parquet"
        unfinished = target.with_name(target.name + ".part")
        writer, at = None, part.start
        with unfinished.open("wb") as file:
            for batch in batches:
                answered = self._answered(batch, at)
                writer = writer or _parquet(file, answered.schema)
                writer.write_table(answered)
                at += batch.num_rows
            assert writer
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)

    def _answered(self, batch: pa.Table, at: int) -> pa.Table:
        kept = batch.select(self._keep)
        for name, column in self.model.columns(batch, at).items():
            kept = kept.append_column(name, column)
        return kept


def _parquet(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """For one reader, who writes it anew: dictionaries of numbers and statistics cost a fifth of the run and serve nobody."""
    texts = [field.name for field in schema if column_type(field.type) == "string"]
    return pq.ParquetWriter(file, schema, use_dictionary=texts, write_statistics=False)
