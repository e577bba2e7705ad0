"""Answers of models that the platform trained: columns in, columns out, no row by itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit.raw import NUMERIC_TYPES, Raw
from libs.modelkit.runtime import Runtime
from libs.modelkit.tables import Columns, column_type, read_columns

BATCH_ROWS = 8192
# Pictures are large once they are decoded.
PICTURES = 256
_SAME = ("double", "integer", "boolean")


class Trained:
    """`inputs`: names of the columns that it reads. `batch_rows`: how many rows `columns` is to be given at once."""

    def __init__(self, runtime: Runtime, *, probabilities: bool) -> None:
        self._runtime = runtime
        self._inputs = runtime.package.preprocessing.inputs
        self._classes = runtime.package.target.classes
        self._labels = runtime.labels if probabilities else []
        self.inputs = [field["name"] for field in self._inputs]
        self.batch_rows = PICTURES if runtime.package.preprocessing.kind == "image" else BATCH_ROWS

    def check(self, schema: pa.Schema, split: str) -> None:
        """What training knows of its columns, which is more than the signature says."""
        errors = []
        for field in self._inputs:
            name, wanted = field["name"], field["type"]
            if name not in schema.names:
                if not field["optional"]:
                    errors.append(lacking(name, split))
            elif (found := column_type(schema.field(name).type)) != wanted and not (found in _SAME and wanted in _SAME):
                errors.append(Violation(name, f"'{name}' is {found}, and the model reads {wanted}; cast it with a transform"))
        if errors:
            raise Invalid.of(errors, code="invalid_data")

    def columns(self, batch: pa.Table, at: int) -> dict[str, pa.Array]:
        """What is added to the rows from `at` on."""
        answers = self._runtime.answer(self._raw(batch, at))
        probabilities = {f"probability_{label}": pa.array(answers[:, place]) for place, label in enumerate(self._labels)}
        return {"prediction": self._predictions(answers), **probabilities}

    def _predictions(self, answers: NDArray[np.float64]) -> pa.Array:
        return pa.array(answers) if self._classes is None else pa.array(self._classes).take(pa.array(answers.argmax(axis=1)))

    def _raw(self, batch: pa.Table, at: int) -> Raw:
        there = set(batch.column_names)
        values = read_columns(batch, [name for name in self.inputs if name in there])
        for field in self._inputs:
            name = field["name"]
            values.setdefault(name, _nothing(field, batch.num_rows))
            _require_usable(field, values, at)
        try:
            return self._runtime.package.preprocessing.from_columns(values)
        except Invalid as error:
            raise Invalid(f"in the rows from {at + 1} on: {error.detail}", code=error.code) from error


def lacking(name: str, split: str) -> Violation:
    return Violation(name, f"split '{split}' has no column '{name}', which the model reads")


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
