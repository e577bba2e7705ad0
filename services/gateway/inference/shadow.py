"""Whether a shadow revision answered as the serving one did. Knows JSON and the inference protocol's messages; no model."""

import math
import struct
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from libs.inference import RESPONSES

# Two trainings of one model never give the same probabilities.
RELATIVE_TOLERANCE = 0.01
_ABSOLUTE_TOLERANCE = 1e-6
# What names the model, and is another one by right.
_NAMES = frozenset(("model_name", "model_version", "id"))
# How struct reads the raw bytes of numbers that may differ a little.
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}


def differs(answer: bytes, other: bytes) -> bool:
    """Words, labels and whole numbers must be equal; other numbers to a hundredth."""
    try:
        return not _same(orjson.loads(answer), orjson.loads(other))
    except orjson.JSONDecodeError:
        return answer != other


def tensors_differ(answer: bytes, other: bytes) -> bool:
    """The same of two answers over gRPC."""
    try:
        return not _same(_tensors(answer), _tensors(other))
    except (DecodeError, struct.error, IndexError):
        return answer != other


def _tensors(answer: bytes) -> list[Any]:
    response = RESPONSES["ModelInfer"].FromString(answer)
    raw = response.raw_output_contents
    return [
        [each.name, each.datatype, list(each.shape), _values(raw[at], each.datatype) if raw else MessageToDict(each.contents)]
        for at, each in enumerate(response.outputs)
    ]


def _values(raw: bytes, datatype: str) -> Any:
    return [value for (value,) in struct.iter_unpack(f"<{_FLOATS[datatype]}", raw)] if datatype in _FLOATS else raw


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
