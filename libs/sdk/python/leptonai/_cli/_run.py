"""What every verb needs: the client, its options, and printing as tables or as JSON."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai._client import Client
from leptonai._errors import InvalidInput
from leptonai._record import Record, clean, records_table, text_table
from leptonai._session import Pages

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, newest first.")]
SHOWN = 100


class Usage(InvalidInput):
    """The command line itself is wrong."""


@dataclass
class _Settings:
    url: str = ""
    api_key: str = ""


settings = _Settings()


def client() -> Client:
    """The client that the global options describe. Two retries: a person waits."""
    return Client(settings.api_key or None, settings.url or None, retries=2)


def console() -> "Console":
    """stdout for people: as wide as the terminal, wide enough for tables elsewhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Results as the API gave them, or plain values, on one line or indented for terminals."""
    indent = 2 if sys.stdout.isatty() else None
    json.dump(_raw(value), sys.stdout, indent=indent, default=str, ensure_ascii=True)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _raw(value: Any) -> Any:
    if isinstance(value, Record):
        return value.raw
    return [_raw(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """One line for people."""
    print(clean(text))


def show(value: Any, as_json: bool, note: str = "") -> None:
    """One result: JSON, or its table and a line."""
    if as_json:
        print_json(value)
        return
    console().print(value)
    if note:
        say(note)


def show_list(
    pages: Pages[Any] | Sequence[Any], columns: Sequence[str], as_json: bool, limit: int = SHOWN, nothing: str = "nothing yet"
) -> None:
    """Several results: a JSON array, or a table."""
    items = pages.first(limit) if isinstance(pages, Pages) else list(pages)[:limit]
    if as_json:
        print_json(items)
    elif items:
        console().print(records_table(items, columns))
    else:
        say(nothing)


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table of plain values."""
    console().print(text_table(columns, rows))


def done(text: str, as_json: bool, **facts: Any) -> None:
    """Something without a result was done."""
    print_json(facts) if as_json else say(text)


def read_json(source: str, what: str) -> Any:
    """JSON from a file, or from stdin for "-". Raises Usage with the line."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except OSError as error:
        raise Usage(f"cannot read {source}: {error.strerror}", f"give the path of {what}, or - for stdin") from None
    except UnicodeDecodeError:
        raise Usage(f"{source} is not text", f"give {what} as JSON in UTF-8") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        name = "stdin" if source == "-" else source
        raise Usage(f"{name} is not JSON: {place}", f"give {what} as JSON") from None


def read_object(source: str, what: str) -> dict[str, Any]:
    """As read_json, of an object."""
    value = read_json(source, what)
    if not isinstance(value, Mapping):
        raise Usage(f"{source} holds {type(value).__name__}, not an object", f"give {what}: {{...}}")
    return dict(value)


def read_text(source: str, what: str) -> str:
    """A text file."""
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(
            f"cannot read {source}: {getattr(error, 'strerror', None) or 'not text in UTF-8'}", f"give the path of {what}"
        ) from None


def value_of(text: str) -> Any:
    """A value on the command line: JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
