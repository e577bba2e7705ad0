"""A step's surroundings: the table that it meets, and how it says that it does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.errors import Invalid, Violation, near
from services.data.engine.columns import ROW, SPLIT, Column, quoted
from services.data.engine.database import Database
from services.data.engine.limits import Limits

WORDS = {"double": "a number", "integer": "a whole number", "boolean": "true or false", "string": "a text", "timestamp": "a time"}


@dataclass(frozen=True)
class Table:
    """A table while it is worked on: its name in the database and its columns. ROW and SPLIT are there as well."""

    name: str
    columns: tuple[Column, ...]
    # No rows: only the steps are checked.
    dry: bool = False

    @property
    def width(self) -> int:
        """Columns, with those that nobody sees."""
        return len(self.columns) + 2

    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def of_pictures(self) -> bool:
        return any(column.type == "image" for column in self.columns)

    def hidden(self) -> list[str]:
        """Columns that no SQL of a user may touch."""
        return [column.name for column in self.columns if column.type == "image"]


@dataclass(frozen=True)
class Step:
    """What one step needs to know of its surroundings."""

    database: Database
    table: Table
    path: str
    limits: Limits

    def refuse(self, field: str, message: str, suggestions: Sequence[str] = (), *, code: str = "invalid_spec") -> Invalid:
        where = f"{self.path}.{field}" if field else self.path
        return Invalid.of([Violation(where, message, tuple(suggestions))], code=code)

    def column(self, name: str, field: str) -> Column:
        """By its exact name, or an error with near ones."""
        for column in self.table.columns:
            if column.name == name:
                return column
        suggestions = near(name, self.table.names())
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else f"; there are {', '.join(self.table.names()[:10])}"
        raise self.refuse(field, f"there is no column '{name}'{hint}", suggestions)

    def columns(self, names: Sequence[str]) -> list[Column]:
        return [self.column(name, f"columns[{position}]") for position, name in enumerate(names)]

    def tables_only(self, verb: str) -> None:
        if self.table.of_pictures():
            raise self.refuse(
                "", f"pictures keep their columns image, label and path, so nothing is {verb}; labels change by map_values or derive"
            )

    def select(self, columns: Mapping[str, str] | None = None, *, where: str = "") -> str:
        """SQL for the whole table with some columns computed anew, in the order of rows."""
        columns = columns or {}
        listed = [f"{columns[name]} AS {quoted(name)}" if name in columns else quoted(name) for name in self.table.names()]
        return f"SELECT {', '.join([*listed, ROW, SPLIT])} FROM {self.table.name}{f' WHERE {where}' if where else ''}"


# What a step makes: SQL for the next table, and its columns.
Made = tuple[str, tuple[Column, ...]]


def lacking(column: Column) -> str:
    """SQL: the row has no usable value there. NaN is none."""
    cell = quoted(column.name)
    return f"({cell} IS NULL OR isnan({cell}))" if column.type == "double" else f"({cell} IS NULL)"


def plural(column: Column) -> str:
    words = {
        "double": "numbers",
        "integer": "whole numbers",
        "boolean": "truth values",
        "string": "texts",
        "timestamp": "times",
        "image": "pictures",
    }
    return words[column.type]
