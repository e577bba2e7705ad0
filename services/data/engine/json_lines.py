"""JSON lines: one flat object a line. Two passes: the first finds names and types and every line that is wrong, the second loads."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from libs.errors import Invalid, Violation
from services.data.engine.columns import check_names, refuse
from services.data.engine.database import Database
from services.data.engine.infer import gap_notice, gaps
from services.data.engine.limits import Limits
from services.data.engine.loading import load as load_batches
from services.data.engine.text import scan

CHUNK_LINES = 8192
EXACT_IN_DOUBLE = 1 << 53
LONG_NUMBER = re.compile(rb"[0-9]{19}")
INT64 = range(-(1 << 63), 1 << 63)
ABSENT = type(None)


@dataclass
class Seen:
    """What one column has held so far."""

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0

    def kind(self) -> str:
        """The narrowest type for all of it."""
        types = self.types - {ABSENT}
        if types == {bool}:
            return "boolean"
        if types == {int} and self.least in INT64 and self.most in INT64:
            return "integer"
        if types and types <= {int, float} and float in types and max(-self.least, self.most) <= EXACT_IN_DOUBLE:
            return "double"
        return "string"


@dataclass(frozen=True)
class Loaded:
    """The table "raw" in the database: its columns, the types that JSON says, and notices."""

    names: list[str]
    declared: dict[str, str]
    notices: list[str]


def load(database: Database, path: Path, limits: Limits) -> Loaded:
    """Makes the table "raw"; raises Invalid with the lines that are wrong."""
    facts = scan(path)
    seen: dict[str, Seen] = {}
    rows = 0
    for begin, objects in _chunks(path, facts.ends_with_newline):
        rows += len(objects)
        _look(begin, objects, seen, limits)
    if not rows:
        raise refuse("line 1", 'the file holds no object; each line must be one, such as {"radius": 12.5, "label": "M"}')
    names = list(seen)
    if not names:
        raise refuse("line 1", 'the objects are all empty; each needs values, such as {"radius": 12.5, "label": "M"}')
    check_names(names, "keys", limits)
    declared = {name: column.kind() for name, column in seen.items()}
    schema = pa.schema([(name, ARROW[declared[name]]) for name in names])
    batches = (_batch(objects, schema, declared) for _, objects in _chunks(path, facts.ends_with_newline))
    load_batches(database, "raw", schema, batches)
    notices = [note for name in names for note in _notes(name, seen[name], declared[name])]
    return Loaded(names, declared, notices + [gap_notice(name, count, rows) for name, count in gaps(database, names).items()])


ARROW = {"boolean": pa.bool_(), "integer": pa.int64(), "double": pa.float64(), "string": pa.string()}


def _chunks(path: Path, complete: bool) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Line numbers and objects, some thousand at a time."""
    numbers: list[int] = []
    objects: list[dict[str, Any]] = []
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            objects.append(_parse(number, line, complete))
            numbers.append(number)
            if len(objects) == CHUNK_LINES:
                yield numbers, objects
                numbers, objects = [], []
    if objects:
        yield numbers, objects


def _parse(number: int, line: bytes, complete: bool) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        cut = not complete and not line.endswith(b"\n")
        hint = "; it is the last line and has no line end: the file seems to be cut off" if cut else ""
        if line.strip() in (b"{", b"["):
            hint = "; write each object on one line, e.g. DataFrame.to_json(path, orient='records', lines=True)"
        raise refuse(f"line {number}", f"not valid JSON at column {error.colno} ({error.msg.split(':')[0]}){hint}") from None
    if LONG_NUMBER.search(line):
        # orjson makes a double of an integer beyond 64 bits.
        value = json.loads(line)
    if type(value) is not dict:
        raise refuse(
            f"line {number}", f'holds {WORDS.get(type(value), "a value")}; each line must be one object such as {{"radius": 12.5}}'
        )
    return value


WORDS = {list: "a list", dict: "an object", str: "a text", int: "a number", float: "a number", bool: "a truth value", ABSENT: "null"}


def _look(numbers: Sequence[int], objects: list[dict[str, Any]], seen: dict[str, Seen], limits: Limits) -> None:
    """Adds a chunk to what was seen."""
    for key in dict.fromkeys(chain.from_iterable(objects)):
        values = [row.get(key) for row in objects]
        types = set(map(type, values))
        if types & {list, dict}:
            raise _nested(key, numbers, values)
        if key not in seen:
            if len(seen) == limits.max_columns:
                raise refuse(
                    f"line {numbers[next(i for i, row in enumerate(objects) if key in row)]}",
                    f"the objects have more than {limits.max_columns} keys together; at most {limits.max_columns} columns are allowed",
                    code="too_large",
                )
            seen[key] = Seen()
        column = seen[key]
        column.types |= types
        if int in types:
            integers = [value for value in values if type(value) is int]
            column.least, column.most = min(column.least, *integers), max(column.most, *integers)


def _nested(key: str, numbers: Sequence[int], values: Sequence[Any]) -> Invalid:
    line, value = next((number, value) for number, value in zip(numbers, values, strict=True) if type(value) in (list, dict))
    message = f"'{key}' holds {WORDS[type(value)]}; columns hold single values: flatten it, e.g. by pandas.json_normalize"
    return Invalid.of([Violation(f"line {line}", message)], code="invalid_data")


def _batch(objects: list[dict[str, Any]], schema: pa.Schema, declared: dict[str, str]) -> pa.RecordBatch:
    arrays = []
    for name in schema.names:
        values = [row.get(name) for row in objects]
        if declared[name] == "string":
            values = [value if value is None or type(value) is str else json.dumps(value) for value in values]
        arrays.append(pa.array(values, schema.field(name).type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _notes(name: str, seen: Seen, kind: str) -> list[str]:
    types = seen.types - {ABSENT}
    if kind != "string" or types <= {str}:
        return []
    if types <= {int, float}:
        return [f"Column '{name}' is text: its numbers do not fit a 64-bit number exactly."]
    return [f"Column '{name}' is text: it mixes {' and '.join(sorted({WORDS[kind] for kind in types}))}."]
