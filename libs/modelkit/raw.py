"""Rows before preprocessing, in the one form that tables, records and tensors are all brought into, so that they cannot differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMERIC_TYPES = ("double", "integer", "boolean", "timestamp")


@dataclass(frozen=True)
class Raw:
    """N rows. `numbers` is float64 [N, M], the numeric inputs in their order with NaN for what is missing (times: seconds since 1970).

    `strings` has an object array [N] of str or None for each string input; `pixels` is uint8 [N, height, width, channels] or None.
    """

    numbers: NDArray[np.float64]
    strings: Mapping[str, NDArray[np.object_]]
    pixels: NDArray[np.uint8] | None = None

    @property
    def rows(self) -> int:
        return len(self.numbers) if self.pixels is None else len(self.pixels)

    @property
    def bytes(self) -> int:
        """Of its arrays; texts count as what points at them."""
        return (
            self.numbers.nbytes
            + sum(column.nbytes for column in self.strings.values())
            + (0 if self.pixels is None else self.pixels.nbytes)
        )

    def part(self, start: int, stop: int) -> "Raw":
        """Rows from `start` to before `stop`, not copied."""
        strings = {name: column[start:stop] for name, column in self.strings.items()}
        return Raw(self.numbers[start:stop], strings, None if self.pixels is None else self.pixels[start:stop])


def from_columns(inputs: Sequence[Mapping[str, Any]], columns: Mapping[str, NDArray[Any]]) -> Raw:
    """Raw from a table's columns, as `tables.read_columns` gives them: float64 with NaN, or objects with None."""
    rows = len(next(iter(columns.values()))) if columns else 0
    numeric = [columns[field["name"]] for field in inputs if field["type"] in NUMERIC_TYPES]
    numbers = np.column_stack(numeric) if numeric else np.empty((rows, 0))
    strings = {field["name"]: columns[field["name"]] for field in inputs if field["type"] == "string"}
    return Raw(numbers, strings)


def concatenate(parts: Sequence[Raw]) -> Raw:
    """One Raw of all rows, in order."""
    if len(parts) == 1:
        return parts[0]
    pixels = None if parts[0].pixels is None else np.concatenate([part.pixels for part in parts if part.pixels is not None])
    strings = {name: np.concatenate([part.strings[name] for part in parts]) for name in parts[0].strings}
    return Raw(np.concatenate([part.numbers for part in parts]), strings, pixels)
