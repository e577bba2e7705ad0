"""Names that a member gives to the numbers of an ONNX file: features to those that it takes, classes to the probabilities that it gives."""

import math
from collections.abc import Sequence
from typing import Any

from libs.errors import Invalid
from libs.modelkit.fit import MAX_CLASSES
from libs.modelkit.signature import MAX_FIELDS, Field, Signature, describe

NAMES = "names.json"
_MOST = {"features": MAX_FIELDS, "classes": MAX_CLASSES}
_LONGEST = 256


def named(signature: Signature, given: Any) -> tuple[Signature, dict[str, Any]]:
    """The signature with these names, and what else model.json says for `onnx_model`. `given`: {"features": […], "classes": […]}, or one.

    Raises `Invalid` where they are no names, or not as many as the graph has numbers.
    """
    if not isinstance(given, dict) or not given or given.keys() - _MOST.keys():
        raise _wrong('it is an object with "features" or "classes", or both')
    for what, names in given.items():
        _check(what, names)
    said: dict[str, Any] = dict(given)
    inputs, outputs = signature.inputs, signature.outputs
    if "features" in given:
        inputs = _features(inputs, given["features"])
    if "classes" in given:
        said["probabilities"] = _probabilities(outputs, len(given["classes"]))
        outputs = describe((), given["classes"]).outputs
    return Signature(inputs, outputs), said


def _check(what: str, names: Any) -> None:
    least = 2 if what == "classes" else 1
    if not isinstance(names, list) or not least <= len(names) <= _MOST[what]:
        raise _wrong(f"{what} are a list of {least} to {_MOST[what]} texts")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not name.isprintable():
            raise _wrong(f"{str(name)[:60]!r} among the {what} is no text of 1 to {_LONGEST} printable characters")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise _wrong(f"'{twice}' is twice among the {what}")


def _features(inputs: Sequence[Field], names: Sequence[str]) -> tuple[Field, ...]:
    field = inputs[0]
    if len(inputs) > 1 or len(field.shape) > 1 or math.prod(field.shape) != len(names):
        takes = ", ".join(_sides(field) for field in inputs[:10])
        raise _wrong(f"{len(names)} features are named, and the graph takes {takes} a row; features name the numbers of a single input")
    return tuple(Field(name, field.type) for name in names)


def _probabilities(outputs: Sequence[Field], classes: int) -> str:
    """The output that has them."""
    fit = [field.name for field in outputs if field.type == "double" and field.shape == (classes,)]
    if len(fit) == 1:
        return fit[0]
    gives = ", ".join(_sides(field) for field in outputs[:10])
    if fit:
        raise _wrong(f"{classes} classes are named, and more than one output has as many numbers a row ({gives}); export one of them")
    raise _wrong(f"{classes} classes are named, and the graph gives {gives} a row; one output has to give the probability of each class")


def _sides(field: Field) -> str:
    return f"'{field.name}' ({' x '.join(map(str, field.shape)) or 'one'} {field.type})"


def _wrong(words: str) -> Invalid:
    return Invalid(f"{NAMES} does not fit: {words}", code="invalid_data")
