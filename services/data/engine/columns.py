"""Columns of a table: their types, their SQL types, and which names are allowed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Invalid, Violation
from services.data.engine.limits import Limits

SQL_TYPES = {
    "double": "DOUBLE",
    "integer": "BIGINT",
    "boolean": "BOOLEAN",
    "string": "VARCHAR",
    "timestamp": "TIMESTAMP",
    "image": "BLOB",
}
# Of the table while it is worked on: the row's number in the source, and the split it is in.
ROW = "__lepton_row"
SPLIT = "__lepton_split"


@dataclass(frozen=True)
class Column:
    """A column's name, its type (a key of SQL_TYPES), and whether some row lacks it."""

    name: str
    type: str
    nullable: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "nullable": self.nullable}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Column":
        return cls(value["name"], value["type"], bool(value.get("nullable", False)))


def quoted(name: str) -> str:
    """As a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """As a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def refuse(field: str, message: str, *, code: str = "invalid_data", suggestions: Iterable[str] = ()) -> Invalid:
    """One violation as an error to raise."""
    return Invalid.of([Violation(field, message, tuple(suggestions))], code=code)


def check_name(name: str, where: str, limits: Limits) -> Violation | None:
    """What is wrong with one name of a column."""
    if not name:
        return Violation(where, "the column has no name; every column needs one")
    if len(name) > limits.max_name_length:
        return Violation(where, f"the column name '{name[:40]}…' has {len(name)} characters; at most {limits.max_name_length} are allowed")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return Violation(where, f"the column name {name!r} holds a line end or another control character; use printable ones")
    if name.casefold().startswith("__lepton_"):
        return Violation(where, f"the column name '{name}' begins with '__lepton_', which the platform keeps for itself")
    return None


def check_names(names: Sequence[str], where: str, limits: Limits) -> None:
    """Raises for names that are empty, malformed, or there twice; `where` says the place, e.g. "line 1"."""
    if len(names) > limits.max_columns:
        raise refuse(where, f"there are {len(names)} columns; at most {limits.max_columns} are allowed", code="too_large")
    seen: dict[str, int] = {}
    violations = []
    for number, name in enumerate(names, start=1):
        place = f"{where}, column {number}"
        if problem := check_name(name, place, limits):
            hint = "; pandas writes its index so, leave it out by to_csv(..., index=False)" if not name and number == 1 else ""
            violations.append(Violation(place, problem.message + hint))
        elif (first := seen.setdefault(name.casefold(), number)) != number:
            other = names[first - 1]
            same = f"'{name}' is there twice" if name == other else f"'{other}' and '{name}' differ only in case"
            violations.append(Violation(place, f"{same} (columns {first} and {number}); every column needs a name of its own"))
    if violations:
        raise Invalid.of(violations[:20], code="invalid_data")
