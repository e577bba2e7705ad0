"""Raw records (JSON objects) to `Raw`, all errors said at once: `instances[3].radius`. Numpy; no JSON library, no model.

The common case, all fields there and of the right type, takes no Python loop over cells.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid, Violation, near
from libs.modelkit.raw import NUMERIC_TYPES, Raw

MAX_ERRORS = 50
_NUMBERS = {int, float}
_WANTED = {
    "double": "a number",
    "integer": "a number",
    "boolean": "true or false",
    "string": "a text",
    "timestamp": 'a time such as "2025-01-31T12:00:00Z"',
    "image": "a PNG or JPEG file in base64, or rows of pixels 0-255",
}

Inputs = Sequence[Mapping[str, Any]]


class RecordReader:
    """Reads records for one model's inputs: {"name", "type", "optional", "shape"} each."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._names = [field["name"] for field in inputs]
        self._numeric = [field for field in inputs if field["type"] in NUMERIC_TYPES]
        self._strings = [field for field in inputs if field["type"] == "string"]
        self._image = next((field for field in inputs if field["type"] == "image"), None)
        self._plain = bool(self._numeric) and len(self._numeric) == len(inputs) and all(f["type"] in ("double", "integer") for f in inputs)
        self._row: Callable[[Any], Any] = itemgetter(*self._names) if self._names else tuple

    def read(self, records: Sequence[Mapping[str, Any]]) -> Raw:
        """Raise `Invalid` (code "invalid_record") naming every wrong field, up to 50."""
        raw = self._read_plain(records) if self._plain else None
        return self._read_any(records) if raw is None else raw

    def _read_plain(self, records: Sequence[Mapping[str, Any]]) -> Raw | None:
        """All inputs are numbers and all records are right; None where they are not."""
        try:
            rows = list(map(self._row, records))
            if set(map(len, records)) - {len(self._names)}:
                return None
            cells = rows if len(self._names) == 1 else list(chain.from_iterable(rows))
            if not set(map(type, cells)) <= _NUMBERS:
                return None
            numbers = np.array(cells, np.float64).reshape(len(records), -1)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError):
            return None
        # A sum may be infinite though no number is: the other way finds out.
        return Raw(numbers, {}) if math.isfinite(numbers.sum()) else None

    def _read_any(self, records: Sequence[Mapping[str, Any]]) -> Raw:
        errors = self._check_names(records)
        if errors:
            raise Invalid.of(errors, code="invalid_record")
        numbers = [self._read_column(field, records, errors) for field in self._numeric]
        strings = {field["name"]: self._read_strings(field, records, errors) for field in self._strings}
        pixels = self._read_images(records, errors) if self._image else None
        if errors:
            raise Invalid.of(errors, code="invalid_record")
        matrix = np.column_stack(numbers) if numbers else np.empty((len(records), 0))
        return Raw(matrix, strings, pixels)

    def _check_names(self, records: Sequence[Any]) -> list[Violation]:
        errors: list[Violation] = []
        known, needed = set(self._names), {field["name"] for field in self._inputs if not field["optional"]}
        for index, record in enumerate(records):
            at = f"instances[{index}]"
            if not isinstance(record, Mapping):
                errors.append(Violation(at, f"{_show(record)} is not an object; send the fields by name: {{{self._example()}}}"))
            elif not needed <= record.keys() <= known:
                errors += [self._missing(at, name, record) for name in self._names if name in needed and name not in record]
                errors += [self._surplus(at, name) for name in record if name not in known]
            if len(errors) >= MAX_ERRORS:
                break
        return errors[:MAX_ERRORS]

    def _missing(self, at: str, name: str, record: Mapping[str, Any]) -> Violation:
        surplus = [key for key in record if key not in self._names]
        close = near(name, surplus)
        hint = f"; is '{close[0]}' meant to be it?" if close else ""
        return Violation(f"{at}.{name}", f"the field '{name}' is missing; it takes {self._wanted(name)}{hint}")

    def _surplus(self, at: str, name: str) -> Violation:
        close = tuple(near(name, self._names))
        hint = f"did you mean '{close[0]}'?" if close else f"it takes: {', '.join(self._names[:20])}"
        return Violation(f"{at}.{_show(name)[1:-1]}", f"the model takes no field {_show(name)}; {hint}", close)

    def _read_column(self, field: Mapping[str, Any], records: Sequence[Mapping[str, Any]], errors: list[Violation]) -> NDArray[np.float64]:
        read = {"boolean": _read_boolean, "timestamp": _read_time}.get(field["type"], _read_number)
        column = np.full(len(records), np.nan)
        for index, value in enumerate(self._values(field, records)):
            if value is None and field["optional"]:
                continue
            try:
                column[index] = read(value)
            except (ValueError, OverflowError, OSError):
                self._wrong(errors, index, field, value)
        return column

    def _read_strings(self, field: Mapping[str, Any], records: Sequence[Mapping[str, Any]], errors: list[Violation]) -> NDArray[np.object_]:
        column = np.empty(len(records), object)
        column[:] = self._values(field, records)
        allowed = {str, type(None)} if field["optional"] else {str}
        if not set(map(type, column)) <= allowed:
            for index, value in enumerate(column):
                if type(value) not in allowed:
                    self._wrong(errors, index, field, value)
        return column

    def _read_images(self, records: Sequence[Mapping[str, Any]], errors: list[Violation]) -> NDArray[np.uint8]:
        from libs.modelkit import pixels  # Pillow is 8 MB that a replica of a table's model does not need

        field = self._image
        assert field is not None
        shape = tuple(field["shape"])
        images = np.zeros((len(records), *shape), np.uint8)
        for index, value in enumerate(self._values(field, records)):
            try:
                images[index] = pixels.decode_base64(value, shape) if isinstance(value, str) else pixels.from_rows(value, shape)
            except ValueError as error:
                if len(errors) < MAX_ERRORS:
                    errors.append(Violation(f"instances[{index}].{field['name']}", f"the picture {error}; it takes {_WANTED['image']}"))
        return images

    def _values(self, field: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Any]:
        name = field["name"]
        return [record.get(name) for record in records]

    def _wrong(self, errors: list[Violation], index: int, field: Mapping[str, Any], value: Any) -> None:
        if len(errors) < MAX_ERRORS:
            hint = ", or null where it is missing" if field["optional"] else ""
            message = f"{_show(value)} does not fit; '{field['name']}' takes {_WANTED[field['type']]}{hint}"
            errors.append(Violation(f"instances[{index}].{field['name']}", message))

    def _wanted(self, name: str) -> str:
        return next(_WANTED[field["type"]] for field in self._inputs if field["name"] == name)

    def _example(self) -> str:
        return ", ".join(f'"{name}": ...' for name in self._names[:3])


def _read_number(value: Any) -> float:
    if type(value) not in _NUMBERS or not -np.inf < value < np.inf:
        raise ValueError
    return float(value)


def _read_boolean(value: Any) -> float:
    if not isinstance(value, bool):
        raise ValueError
    return float(value)


def _read_time(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError
    time = datetime.fromisoformat(value)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _show(value: Any) -> str:
    if value is None:
        return "null"
    text = f"'{value}'" if isinstance(value, str) else str(value)[:200]
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 60 else text[:56] + "...'"
