"""JSON lines: one flat object a line. Two passes: the first finds names and types and every line that is wrong, the second loads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
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
    exact: set[int] = set()
    for number, chunk in enumerate(_chunks(path)):
        objects = _parse(chunk, facts.ends_with_newline)
        if _holds_huge(objects):
            exact.add(number)
            objects = _parse_exactly(chunk)
        rows += len(objects)
        _look(chunk, objects, seen, limits)
    if not rows:
        raise refuse("line 1", 'the file holds no object; each line must be one, such as {"radius": 12.5, "label": "M"}')
    names = list(seen)
    if not names:
        raise refuse("line 1", 'the objects are all empty; each needs values, such as {"radius": 12.5, "label": "M"}')
    check_names(names, "keys", limits)
    declared = {name: column.kind() for name, column in seen.items()}
    schema = pa.schema([(name, ARROW[declared[name]]) for name in names])
    batches = (
        _batch(_parse_exactly(chunk) if number in exact else _parse(chunk, facts.ends_with_newline), schema, declared)
        for number, chunk in enumerate(_chunks(path))
    )
    load_batches(database, "raw", schema, batches)
    notices = [note for name in names for note in _notes(name, seen[name], declared[name])]
    return Loaded(names, declared, notices + [gap_notice(name, count, rows) for name, count in gaps(database, names).items()])


ARROW = {"boolean": pa.bool_(), "integer": pa.int64(), "double": pa.float64(), "string": pa.string()}


@dataclass(frozen=True)
class Chunk:
    """Lines that are not blank, with their numbers."""

    numbers: list[int]
    lines: list[bytes]


def _chunks(path: Path) -> Iterator[Chunk]:
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        numbered = enumerate(file, start=1)
        while pairs := list(islice(numbered, CHUNK_LINES)):
            filled = [(number, line) for number, line in pairs if not line.isspace()]
            yield Chunk([number for number, _ in filled], [line for _, line in filled])


def _parse(chunk: Chunk, complete: bool) -> list[dict[str, Any]]:
    try:
        objects = [orjson.loads(line) for line in chunk.lines]
    except orjson.JSONDecodeError:
        for number, line in zip(chunk.numbers, chunk.lines, strict=True):
            _refuse_broken(number, line, complete)
        raise
    for number, value in zip(chunk.numbers, objects, strict=True):
        if type(value) is not dict:
            what = WORDS.get(type(value), "a value")
            raise refuse(f"line {number}", f'holds {what}; each line must be one object such as {{"radius": 12.5}}')
    return objects


def _refuse_broken(number: int, line: bytes, complete: bool) -> None:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        cut = not complete and not line.endswith(b"\n")
        hint = "; it is the last line and has no line end: the file seems to be cut off" if cut else ""
        if line.strip() in (b"{", b"["):
            hint = "; write each object on one line, e.g. DataFrame.to_json(path, orient='records', lines=True)"
        raise refuse(f"line {number}", f"not valid JSON at column {error.colno} ({error.msg.split(':')[0]}){hint}") from None


def _holds_huge(objects: list[dict[str, Any]]) -> bool:
    """Whether a number may be an integer beyond 64 bits, of which orjson makes a double."""
    return any(type(value) is float and abs(value) >= INT64.stop for row in objects for value in row.values())


def _parse_exactly(chunk: Chunk) -> list[dict[str, Any]]:
    """Five times slower, with integers of any size."""
    return [json.loads(line) for line in chunk.lines]


WORDS = {list: "a list", dict: "an object", str: "a text", int: "a number", float: "a number", bool: "a truth value", ABSENT: "null"}


def _look(chunk: Chunk, objects: list[dict[str, Any]], seen: dict[str, Seen], limits: Limits) -> None:
    """Adds a chunk to what was seen."""
    for key in dict.fromkeys(chain.from_iterable(objects)):
        values = [row.get(key) for row in objects]
        types = set(map(type, values))
        if types & {list, dict}:
            raise _nested(key, chunk.numbers, values)
        if key not in seen:
            if len(seen) == limits.max_columns:
                raise refuse(
                    f"line {chunk.numbers[next(i for i, row in enumerate(objects) if key in row)]}",
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
