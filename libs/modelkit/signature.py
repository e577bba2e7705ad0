"""What a model takes and gives, in words that a caller understands: derived from its preprocessing, written into its package."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Invalid, Violation
from libs.modelkit.fit import MAX_CLASSES

MAX_LISTED = 100
MAX_FIELDS = 1000
_MAX_CELLS = 1 << 20
_TYPES = ("double", "integer", "boolean", "string", "image")


@dataclass(frozen=True)
class Field:
    """One field of a record. `type`: double, integer, boolean, string or image; `shape` of pictures: (height, width, channels).

    Other fields of models that are brought may have a shape too: nested lists.
    """

    name: str
    type: str
    optional: bool = False
    categories: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "optional": self.optional,
            "categories": list(self.categories),
            "shape": list(self.shape),
        }


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs, in order."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    def as_json(self) -> dict[str, Any]:
        return {"inputs": [f.as_json() for f in self.inputs], "outputs": [f.as_json() for f in self.outputs]}


def label(value: Any) -> str:
    """A class as a text, as it stands in JSON: true, 1, 1.5 or itself."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def describe(inputs: Sequence[Mapping[str, Any]], classes: Sequence[Any] | None) -> Signature:
    """The signature of a model with these fitted inputs, and with these classes (None: it predicts a number)."""
    return Signature(tuple(_input(field) for field in inputs), _outputs(classes))


def _input(field: Mapping[str, Any]) -> Field:
    kind = "string" if field["type"] == "timestamp" else field["type"]
    values = field.get("values") or ()
    categories = tuple(values) if len(values) <= MAX_LISTED and not field.get("more") else ()
    return Field(field["name"], kind, field["optional"], categories, tuple(field.get("shape") or ()))


def _outputs(classes: Sequence[Any] | None) -> tuple[Field, ...]:
    if classes is None:
        return (Field("prediction", "double"),)
    labels = tuple(label(value) for value in classes)
    kind = {bool: "boolean", int: "integer", float: "double"}.get(type(classes[0]), "string")
    return Field("prediction", kind, categories=labels), Field("probabilities", "double", categories=labels, shape=(len(labels),))


def read_signature(data: Any) -> Signature:
    """A signature that somebody wrote, as `as_json` writes one. Raises `Invalid` that names every wrong field."""
    if not isinstance(data, dict) or not {"inputs", "outputs"} >= data.keys():
        raise Invalid('a signature is an object with "inputs" and "outputs", and nothing else', code="invalid_data")
    errors: list[Violation] = []
    inputs, outputs = (_read_fields(data.get(side, []), side, errors) for side in ("inputs", "outputs"))
    if sum(field.type == "image" for field in inputs) > 1 or any(field.type == "image" for field in outputs):
        errors.append(Violation("inputs", "there is one picture at most, and no output is one"))
    if errors:
        raise Invalid.of(errors[:50], code="invalid_data")
    return Signature(inputs, outputs)


def _read_fields(given: Any, side: str, errors: list[Violation]) -> tuple[Field, ...]:
    if not isinstance(given, list) or len(given) > MAX_FIELDS:
        errors.append(Violation(side, f"is no list of at most {MAX_FIELDS} fields"))
        return ()
    fields = []
    for index, item in enumerate(given):
        if words := _wrong_field(item):
            errors.append(Violation(f"{side}[{index}]", words))
            continue
        fields.append(
            Field(item["name"], item["type"], item.get("optional", False), tuple(item.get("categories", ())), tuple(item.get("shape", ())))
        )
    names = [field.name for field in fields]
    errors += [Violation(side, f"'{name}' is there twice") for name in sorted({name for name in names if names.count(name) > 1})]
    return tuple(fields)


def _wrong_field(item: Any) -> str:
    if not isinstance(item, dict) or not {"name", "type"} <= item.keys() <= {"name", "type", "optional", "categories", "shape"}:
        return 'is no object with "name", "type" and, if need be, "optional", "categories", "shape"'
    if not isinstance(item["name"], str) or not 0 < len(item["name"]) <= 256:
        return "the name is no text of 1 to 256 characters"
    if item["type"] not in _TYPES:
        return f"there is no type {str(item['type'])[:40]!r}; there are: {', '.join(_TYPES)}"
    categories, shape = item.get("categories", []), item.get("shape", [])
    if not isinstance(item.get("optional", False), bool) or not isinstance(categories, list) or len(categories) > MAX_CLASSES:
        return f"optional is true or false, categories a list of at most {MAX_CLASSES} texts"
    if not all(isinstance(value, str) for value in categories):
        return "categories are texts"
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(number) is int and 0 < number <= _MAX_CELLS for number in shape):
        return "the shape is no list of at most 8 whole numbers above 0"
    if math.prod(shape) > _MAX_CELLS:
        return f"the shape has more than {_MAX_CELLS} cells"
    return "a picture has the shape [height, width, channels]" if item["type"] == "image" and len(shape) != 3 else ""
