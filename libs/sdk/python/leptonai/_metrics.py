"""Errors and scores of predictions, in double precision; they agree with scikit-learn's. Need neither numpy nor pandas."""

import math
from typing import Any

from leptonai._errors import InvalidInput
from leptonai._tabular import columns_of, is_missing


def mean_squared_error(y_true: Any, y_pred: Any) -> float:
    """Mean of (true - predicted)²; same order as the arguments of scikit-learn. Raises InvalidInput for unequal lengths or NaN."""
    true, predicted = _numbers(y_true, y_pred)
    return math.fsum((a - b) ** 2 for a, b in zip(true, predicted, strict=True)) / len(true)


def mean_absolute_error(y_true: Any, y_pred: Any) -> float:
    """Mean of |true - predicted|. Raises InvalidInput for unequal lengths or NaN."""
    true, predicted = _numbers(y_true, y_pred)
    return math.fsum(abs(a - b) for a, b in zip(true, predicted, strict=True)) / len(true)


def r2_score(y_true: Any, y_pred: Any) -> float:
    """1 - squared error / variance: 1 is perfect, 0 no better than the mean, NaN for a single row; a constant truth scores 1 or 0."""
    true, predicted = _numbers(y_true, y_pred)
    if len(true) < 2:
        return math.nan
    mean = math.fsum(true) / len(true)
    missed = math.fsum((a - b) ** 2 for a, b in zip(true, predicted, strict=True))
    spread = math.fsum((a - mean) ** 2 for a in true)
    if spread == 0:
        return 1.0 if missed == 0 else 0.0
    return 1 - missed / spread


def accuracy_score(y_true: Any, y_pred: Any) -> float:
    """Share of predictions that are equal to the truth, 0 to 1. Raises InvalidInput for unequal lengths or missing values."""
    true, predicted = _pair(y_true, y_pred)
    return sum(bool(a == b) for a, b in zip(true, predicted, strict=True)) / len(true)


def _pair(y_true: Any, y_pred: Any) -> tuple[list[Any], list[Any]]:
    found = []
    for what, data in (("y_true", y_true), ("y_pred", y_pred)):
        columns = columns_of(data, what)
        if len(columns.values) != 1:
            raise InvalidInput(f"{what} has {len(columns.values)} columns", "it takes one")
        values = columns.values[0]
        missing = next((index for index, value in enumerate(values) if is_missing(value)), None)
        if missing is not None:
            raise InvalidInput(f"{what}[{missing}] is missing (NaN)", "drop or fill it")
        found.append(values)
    if len(found[0]) != len(found[1]):
        raise InvalidInput(f"y_true has {len(found[0])} values and y_pred {len(found[1])}", "they must be of the same rows")
    if not found[0]:
        raise InvalidInput("y_true is empty", "it takes at least one value")
    return found[0], found[1]


def _numbers(y_true: Any, y_pred: Any) -> tuple[list[float], list[float]]:
    found = _pair(y_true, y_pred)
    for what, values in zip(("y_true", "y_pred"), found, strict=True):
        for index, value in enumerate(values):
            if not isinstance(value, int | float):
                raise InvalidInput(f"{what}[{index}] is {value!r:.40}, not a number")
    return [float(value) for value in found[0]], [float(value) for value in found[1]]
