"""What every result is: a frozen, typed view of the platform's JSON, shown as a table in Jupyter and in terminals.

Tolerant: unknown fields stay in `.raw`, missing ones take their default. Knows nothing of particular resources.
"""

import dataclasses
import functools
import html
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar, dataclass_transform, get_args, get_origin

from leptonai._errors import Violation

if TYPE_CHECKING:
    from rich.table import Table

R = TypeVar("R")

_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
_CELL = 60
_WHOLE = ("id", "name", "slug", "number", "state", "model_version", "create_time")  # to be copied, so never folded
_ROWS = 50


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
def record(cls: type[R]) -> type[R]:
    """A frozen dataclass with keyword arguments. `Record` has == and repr for all: made class by class, they took 30 ms of each start."""
    return dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls)


@record
class Record:
    """Base of all results. `raw` is the JSON as it came, with fields that this version does not know."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in dataclasses.fields(self) if f.compare)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__name__}({shown})"

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From an object of the REST API; whatever cannot be read takes its default."""
        data = data if isinstance(data, Mapping) else {}
        values = {}
        for name, hint in _hints(cls).items():  # type: ignore[arg-type]
            if name != "raw" and data.get(name) is not None:
                values[name] = _read(hint, data[name])
        return cls(raw=data, **values)

    def _repr_html_(self) -> str:
        rows = [(name, text) for name, text in self._shown() if text]
        body = "".join(f"<tr><th style='text-align:left'>{_escape(name)}</th><td>{_escape(text)}</td></tr>" for name, text in rows)
        return f"<table><caption>{_escape(type(self).__name__)}</caption><tbody>{body}</tbody></table>"

    def __rich__(self) -> "Table":
        return text_table(("", type(self).__name__), [(name, text) for name, text in self._shown() if text])

    def _shown(self) -> list[tuple[str, str]]:
        return [(f.name, show(getattr(self, f.name), 300)) for f in dataclasses.fields(self) if f.repr]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in {f.name for f in dataclasses.fields(cls)}}


def _read(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _read(next(arg for arg in args if arg is not type(None)), value)
    if origin is tuple:
        return tuple(_read(args[0], item) for item in value) if isinstance(value, list) else ()
    if origin in (dict, Mapping):
        return {str(key): _read(args[1], item) for key, item in value.items()} if isinstance(value, Mapping) else {}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if hint is Violation:
        item = value if isinstance(value, Mapping) else {}
        return Violation(str(item.get("field", "")), str(item.get("message", "")), tuple(map(str, item.get("suggestions") or ())))
    if hint is datetime:
        return _time(value)
    if hint is str:
        return value if isinstance(value, str) else str(value)
    return _number(hint, value) if hint in (int, float) else value


def _number(hint: type, value: Any) -> Any:
    try:
        return hint(value)
    except (TypeError, ValueError, OverflowError):
        return hint()


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def clean(text: str) -> str:
    """Without control characters: what others wrote must not steer the reader's terminal. Line ends and tabs stay."""
    return text.translate(_CONTROL)


def show(value: Any, width: int = _CELL) -> str:
    """One value for a person, on one line, at most `width` characters."""
    if value is None or value == "" or value == () or value == {}:
        return ""
    if isinstance(value, datetime):
        text = value.strftime("%Y-%m-%d %H:%M:%S")
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key}={show(item, width)}" for key, item in value.items())
    elif isinstance(value, tuple | list):
        text = ", ".join(show(item, width) for item in value)
    elif isinstance(value, Record) and type(value).__str__ is object.__str__:
        text = ", ".join(f"{name} {item}" for name, item in value._shown() if item)
    else:
        text = str(value)
    text = " ".join(clean(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _escape(text: str) -> str:
    return html.escape(text)


def columns_of(items: Sequence[Record]) -> list[str]:
    """Fields that some item has a value in: the columns of a table of them."""
    if not items:
        return []
    names = [f.name for f in dataclasses.fields(items[0]) if f.repr]
    return [name for name in names if any(show(getattr(item, name)) for item in items)]


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> str:
    """A plain HTML table; every cell is escaped."""
    head = "".join(f"<th>{_escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{_escape(show(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (f"<p>{_escape(note)}</p>" if note else "")


def text_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> "Table":
    """A rich table; cells are plain text, never markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(Text(name), overflow="fold", no_wrap=name in _WHOLE)
    for row in rows:
        table.add_row(*(Text(show(cell, 300)) for cell in row))
    return table


def records_html(items: Sequence[Record], more: bool = False) -> str:
    """Records as an HTML table, one a row."""
    columns = columns_of(items)
    note = "… there are more" if more or len(items) > _ROWS else ("" if items else "nothing yet")
    return html_table(columns, ([getattr(item, name) for name in columns] for item in items[:_ROWS]), note)


def records_table(items: Sequence[Record], columns: Sequence[str] = ()) -> "Table":
    """Records as a rich table, one a row; `columns` default to those with any value."""
    columns = columns or columns_of(items)
    return text_table(columns, ([getattr(item, name) for name in columns] for item in items))
