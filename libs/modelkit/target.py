"""The column to predict, as numbers that a loss can be taken of, and back again. Numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid, Violation
from libs.modelkit.evaluation import softmax
from libs.modelkit.fit import MAX_CLASSES
from libs.modelkit.preprocessing import spread
from libs.modelkit.signature import label
from libs.modelkit.text import LABELS


class Target:
    """`data` is its JSON: {"name", "type", "classes"} for a classifier, {"name", "type", "mean", "scale"} for a number."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = dict(data)
        self.name: str = data["name"]
        self.classes: list[Any] | None = data.get("classes")
        self.labels = [label(value) for value in self.classes] if self.classes is not None else []

    @property
    def outputs(self) -> int:
        """How many numbers the model gives for a row."""
        return 1 if self.classes is None else len(self.classes)

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Class indices int64 [N], or standardised numbers float64 [N]; raises `Invalid` for a missing or unknown value."""
        _check_complete(self.name, values)
        if self.classes is None:
            return (values - self.data["mean"]) / self.data["scale"]
        places = {value: index for index, value in enumerate(self.classes)}
        found = [places.get(value, -1) for value in values.tolist()]
        if -1 in found:
            value = values.tolist()[found.index(-1)]
            message = f"'{value}' is not among the classes known from training: {', '.join(self.labels[:10])}"
            raise Invalid.of([Violation(self.name, message)], code="invalid_data")
        return np.array(found, np.int64)

    def numbers(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """Predicted numbers [N] in the target's own unit, from a model's outputs [N, 1]."""
        return outputs[:, 0].astype(np.float64) * self.data["scale"] + self.data["mean"]

    def probabilities(self, outputs: NDArray[Any]) -> NDArray[np.float64]:
        """[N, K] from a model's outputs [N, K], which are logits."""
        return softmax(outputs)


def fit_target(name: str, kind: str, values: NDArray[Any], *, classify: bool) -> Target:
    """From all rows' values, as `tables.read_columns` gives them; raises `Invalid` where they cannot be learned."""
    _check_complete(name, values)
    if classify:
        return Target({"name": name, "type": kind, "classes": _classes(name, kind, values)})
    if np.isinf(values).any():
        raise _unusable(name, "has infinite values; replace or drop these rows with a transform")
    mean, scale = spread(values)
    return Target({"name": name, "type": kind, "mean": mean, "scale": scale})


def next_byte(name: str) -> Target:
    """What follows a text: a byte, or its end."""
    return Target({"name": name, "type": "string", "classes": LABELS})


def _classes(name: str, kind: str, values: NDArray[Any]) -> list[Any]:
    distinct: Sequence[Any] = sorted(set(values.tolist()))
    if len(distinct) < 2:
        raise _unusable(name, "has one class only; a classifier needs at least two different values")
    if len(distinct) > min(MAX_CLASSES, len(values)):
        raise _unusable(name, f"has {len(distinct)} classes in {len(values)} rows; there can be {MAX_CLASSES}, each with several rows")
    if kind in ("boolean", "integer"):
        return [bool(value) if kind == "boolean" else int(value) for value in distinct]
    return list(distinct)


def _check_complete(name: str, values: NDArray[Any]) -> None:
    missing = sum(v is None for v in values) if values.dtype == object else int(np.isnan(values).sum())
    if missing:
        raise _unusable(name, f"has {missing} missing or NaN values in {len(values)} rows; drop or fill these rows with a transform")


def _unusable(name: str, message: str) -> Invalid:
    return Invalid.of([Violation("target", f"'{name}' {message}")], code="invalid_data")
