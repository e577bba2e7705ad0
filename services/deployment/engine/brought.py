"""Answers of models that members brought: rows as records into the replica's sandbox, a few at a time, and its answers as columns."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

import pyarrow as pa

from libs.errors import AppError, Invalid
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.tables import column_type
from services.deployment.engine.trained import PICTURES, lacking

# An answer may be large: so many rows' columns are held, and so many rows' answers are asked for at once.
BATCH_ROWS, AT_ONCE = 1024, 64
# Each is a file in base64, on both sides.
PICTURES_AT_ONCE = 16
_TYPES = {"double": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_(), "string": pa.string()}


class Brought:
    """As `Trained`. `added`: name and type of each new column, in the order of the signature's outputs and their cells."""

    def __init__(self, runtime: CodeRuntime, added: Sequence[Mapping[str, Any]], *, probabilities: bool) -> None:
        self._runtime, self._fields, self._added = runtime, runtime.signature.inputs, added
        self._outputs = [
            field for field in runtime.signature.outputs if probabilities or not (field.name == "probabilities" and field.categories)
        ]
        pictures = any(field.type == "image" for field in self._fields)
        self._at_once = PICTURES_AT_ONCE if pictures else AT_ONCE
        self.inputs = [field.name for field in self._fields]
        self.batch_rows = PICTURES if pictures else BATCH_ROWS

    def check(self, schema: pa.Schema, split: str) -> None:
        """Only what is there: of what a column holds each record is judged."""
        errors = [lacking(field.name, split) for field in self._fields if not field.optional and field.name not in schema.names]
        if errors:
            raise Invalid.of(errors, code="invalid_data")

    def columns(self, batch: pa.Table, at: int) -> dict[str, pa.ChunkedArray]:
        """What is added to the rows from `at` on. Raises Invalid, with its number, for a row that the model does not answer."""
        pieces = self._pieces(self._records(batch), at)
        return {column["name"]: pa.chunked_array(arrays) for column, *arrays in zip(self._added, *pieces, strict=True)}

    def _records(self, batch: pa.Table) -> list[dict[str, Any]]:
        columns = {field.name: _values(batch.column(field.name), field.type) for field in self._fields if field.name in batch.column_names}
        if not columns:
            return [{} for _ in range(batch.num_rows)]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _pieces(self, records: list[dict[str, Any]], at: int) -> Iterator[list[pa.Array]]:
        """Of so many rows as were asked for together, each new column."""
        done = 0
        while done < len(records):
            some = records[done : done + self._at_once]
            try:
                arrays = self._arrays(self._runtime.answer(self._runtime.read(some)).tolist())
            except AppError as error:
                if len(some) == 1:
                    words = error.errors[0].message if error.errors else error.detail
                    raise Invalid(f"row {at + done + 1} has no answer: {words}", code="invalid_data") from error
                # Finds the row that it fails at; and what is slow, or answers much, is asked for less from now on.
                self._at_once = len(some) // 2
                continue
            yield arrays
            done += len(some)

    def _arrays(self, answers: list[Any]) -> list[pa.Array]:
        rows = [[cell for field in self._outputs for cell in _cells(answer.get(field.name), field.shape)] for answer in answers]
        found = []
        for column, values in zip(self._added, zip(*rows, strict=True), strict=True):
            name, kind = column["name"], column["type"]
            try:
                found.append(pa.array(map(_float, values) if kind == "double" else values, _TYPES[kind]))
            except (OverflowError, ValueError) as error:
                raise Invalid(f"no column of type {kind} holds its '{name}': {error}", code="invalid_data") from error
        return found


def _values(column: pa.ChunkedArray, wanted: str) -> list[Any]:
    """As a caller of an endpoint would send them; what does not fit is left for the reader of records to name."""
    found = column_type(column.type)
    if found == "timestamp":
        return [None if value is None else f"{value.isoformat()}Z" for value in column.cast(pa.timestamp("us"), safe=False).to_pylist()]
    if found == "image":
        return [None if value is None else b64encode(value).decode() for value in column.to_pylist()]
    if found == "double":
        values = [None if value is None or isnan(value) else value for value in column.cast(pa.float64()).to_pylist()]
    else:
        values = column.to_pylist()
    if wanted == "boolean" and found in ("double", "integer"):
        return [bool(value) if value in (0, 1) else value for value in values]
    if wanted in ("double", "integer") and found == "boolean":
        return [None if value is None else int(value) for value in values]
    return values


def _cells(value: Any, shape: Sequence[int]) -> Iterator[Any]:
    """Row by row; as many where there is no value."""
    if not shape:
        yield value
        return
    for item in value if value is not None else [None] * shape[0]:
        yield from _cells(item, shape[1:])


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
