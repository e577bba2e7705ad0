"""Whether a shadow revision answered as the serving one did. Knows JSON; no model."""

import math
from typing import Any

import orjson

# Two trainings of one model never give the same probabilities.
RELATIVE_TOLERANCE = 0.01
_ABSOLUTE_TOLERANCE = 1e-6
# What names the model, and is another one by right.
_NAMES = frozenset(("model_name", "model_version", "id"))


def differs(answer: bytes, other: bytes) -> bool:
    """Words, labels and whole numbers must be equal; other numbers to a hundredth."""
    try:
        return not _same(orjson.loads(answer), orjson.loads(other))
    except orjson.JSONDecodeError:
        return answer != other


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        keys = (one.keys() | two.keys()) - _NAMES
        return all(key in one and key in two and _same(one[key], two[key]) for key in keys)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, float) or isinstance(two, float):
        if not isinstance(one, int | float) or not isinstance(two, int | float):
            return False
        return math.isclose(one, two, rel_tol=RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE)
    return type(one) is type(two) and bool(one == two)
