"""From Parquet files to parts with predictions. Knows no platform: a folder, a model package, files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit.raw import NUMERIC_TYPES, Raw
from libs.modelkit.runtime import Runtime, load
from libs.modelkit.tables import Columns, column_type, read_columns

BATCH_ROWS = 8192
# Pictures are large once they are decoded.
PICTURES = 256
_SAME = ("double", "integer", "boolean")


@dataclass(frozen=True)
class Part:
    """Rows of a split from `start` to before `stop`."""

    number: int
    split: str
    start: int
    stop: int


def predict(folder: Path, spec: Mapping[str, Any]) -> None:
    """Makes the parts of `spec` (README.md) below `folder`/parts. Raises Invalid where the data is not what the model reads."""
    writer = _Writer(folder / "parts", load(spec["package"], spec["threads"]), spec["columns"], spec["probabilities"])
    parts = [Part(**part) for part in spec["parts"]]
    for split in spec["splits"]:
        wanted = sorted((part for part in parts if part.split == split["name"]), key=lambda part: part.start)
        if wanted:
            _predict_split(writer, folder / split["path"], wanted)


def _predict_split(writer: "_Writer", path: Path, parts: Sequence[Part]) -> None:
    file = pq.ParquetFile(path, memory_map=True)
    writer.check(file.schema_arrow, parts[-1].split)
    rows = _Rows(file, writer.read_names(file.schema_arrow), parts[0].start, writer.batch_rows)
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

    def __init__(self, folder: Path, runtime: Runtime, keep: Sequence[str], probabilities: bool) -> None:
        self._folder, self._runtime, self._keep = folder, runtime, list(keep)
        self._inputs = runtime.package.preprocessing.inputs
        self._classes = runtime.package.target.classes
        self._labels = runtime.labels if probabilities else []
        self.batch_rows = PICTURES if runtime.package.preprocessing.kind == "image" else BATCH_ROWS
        folder.mkdir(exist_ok=True)

    def read_names(self, schema: pa.Schema) -> list[str]:
        return list(dict.fromkeys([*self._keep, *(field["name"] for field in self._inputs if field["name"] in schema.names)]))

    def check(self, schema: pa.Schema, split: str) -> None:
        """What training knows of its columns, which is more than the signature says."""
        errors = []
        for field in self._inputs:
            name, wanted = field["name"], field["type"]
            if name not in schema.names:
                if not field["optional"]:
                    errors.append(Violation(name, f"split '{split}' has no column '{name}', which the model reads"))
            elif (found := column_type(schema.field(name).type)) != wanted and not (found in _SAME and wanted in _SAME):
                errors.append(Violation(name, f"'{name}' is {found}, and the model reads {wanted}; cast it with a transform"))
        if errors:
            raise Invalid.of(errors, code="invalid_data")

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
        answers = self._runtime.answer(self._raw(batch, at))
        added = {"prediction": self._predictions(answers)}
        added |= {f"probability_{label}": pa.array(answers[:, place]) for place, label in enumerate(self._labels)}
        kept = batch.select(self._keep)
        for name, column in added.items():
            kept = kept.append_column(name, column)
        return kept

    def _predictions(self, answers: NDArray[np.float64]) -> pa.Array:
        return pa.array(answers) if self._classes is None else pa.array(self._classes).take(pa.array(answers.argmax(axis=1)))

    def _raw(self, batch: pa.Table, at: int) -> Raw:
        there = set(batch.column_names)
        values = read_columns(batch, [field["name"] for field in self._inputs if field["name"] in there])
        for field in self._inputs:
            name = field["name"]
            values.setdefault(name, _nothing(field, batch.num_rows))
            _require_usable(field, values, at)
        try:
            return self._runtime.package.preprocessing.from_columns(values)
        except Invalid as error:
            raise Invalid(f"in the rows from {at + 1} on: {error.detail}", code=error.code) from error


def _parquet(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """For one reader, who writes it anew: dictionaries of numbers and statistics cost a fifth of the run and serve nobody."""
    texts = [field.name for field in schema if column_type(field.type) == "string"]
    return pq.ParquetWriter(file, schema, use_dictionary=texts, write_statistics=False)


def _nothing(field: Mapping[str, Any], rows: int) -> NDArray[Any]:
    return np.full(rows, np.nan) if field["type"] in NUMERIC_TYPES else np.full(rows, None, object)


def _require_usable(field: Mapping[str, Any], values: Columns, at: int) -> None:
    name, column = field["name"], values[field["name"]]
    if column.dtype == object:
        missing, infinite = np.array([cell is None for cell in column], bool), np.zeros(len(column), bool)
    else:
        missing, infinite = np.isnan(column), np.isinf(column)
    if not field["optional"] and missing.any():
        message = f"row {at + int(missing.argmax()) + 1} lacks '{name}', which every row had that the model was trained on"
        raise Invalid.of([Violation(name, f"{message}; drop or impute such rows with a transform")], code="invalid_data")
    if infinite.any():
        message = f"row {at + int(infinite.argmax()) + 1} has an infinite '{name}'; replace or drop such rows with a transform"
        raise Invalid.of([Violation(name, message)], code="invalid_data")
