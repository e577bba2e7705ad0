"""What a model takes and gives, in words that a caller understands: derived from its preprocessing, written into its package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_LISTED = 100


@dataclass(frozen=True)
class Field:
    """One field of a record. `type`: double, integer, boolean, string or image; `shape` of pictures: (height, width, channels)."""

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
