"""The steps of a dataset transform, typed. They run in order, each on the result of the one before.

client.datasets.transform("wdbc@1", [la.steps.dedupe(), la.steps.impute("median"), la.steps.split(test=0.2, stratify="diagnosis")])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

ColumnType = Literal["double", "integer", "boolean", "string", "timestamp", "image"]


@dataclass(frozen=True)
class Step:
    """One step, as the REST API takes it: {kind: options}."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Without options that were left out."""
        return {self.kind: {key: value for key, value in self.options.items() if value is not None and value != []}}


def drop_missing(*columns: str) -> Step:
    """Drops rows that lack a value in these columns; by default in any."""
    return Step("drop_missing", {"columns": list(columns)})


def impute(strategy: Literal["mean", "median", "most_frequent", "constant"], *, columns: Sequence[str] = (), value: Any = None) -> Step:
    """Fills missing values; by default in every column that the strategy fits. `value` is for "constant"."""
    return Step("impute", {"strategy": strategy, "columns": _names(columns), "value": value})


def dedupe(*columns: str) -> Step:
    """Keeps the first of rows that are equal in these columns; by default in all."""
    return Step("dedupe", {"columns": list(columns)})


def cast(column: str, type: ColumnType, *, lenient: bool = False) -> Step:
    """Changes a column's type. What does not fit is an error that names the row, or becomes missing when `lenient`."""
    return Step("cast", {"column": column, "type": type, "lenient": lenient or None})


def filter(expression: str) -> Step:
    """Keeps rows for which a SQL expression is true, e.g. "radius_mean > 0 AND diagnosis IN ('M', 'B')"."""
    return Step("filter", {"expression": expression})


def derive(column: str, expression: str) -> Step:
    """Adds or replaces a column by a SQL expression, e.g. "upper(trim(diagnosis))"."""
    return Step("derive", {"column": column, "expression": expression})


def rename(column: str, to: str) -> Step:
    """Gives a column another name."""
    return Step("rename", {"column": column, "to": to})


def drop_columns(*columns: str) -> Step:
    """Drops columns."""
    return Step("drop_columns", {"columns": list(columns)})


def map_values(column: str, values: Mapping[str, str]) -> Step:
    """Replaces values of a text column; what is not named stays."""
    return Step("map_values", {"column": column, "values": dict(values)})


def split(*, test: float = 0.0, validation: float = 0.0, seed: int = 0, stratify: str = "") -> Step:
    """Divides the rows into "train", "test" and perhaps "validation" (fractions of all rows). Only as the last step."""
    options = {"test": test, "validation": validation or None, "seed": seed or None, "stratify": stratify or None}
    return Step("split", options)


def _names(columns: Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)
