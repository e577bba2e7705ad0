"""JSON as REST speaks it ↔ proto messages. Knows types only; bounds are rules.py's affair.

Names are snake_case, 64-bit integers are numbers, enums short lower-case names, timestamps RFC 3339, bytes base64, Struct and Value plain
JSON. Out: scalars, enums, lists and maps are always there; messages and optionals only when set; NaN and infinity become null. In: null
is the same as absent; whatever does not fit is refused, all of it at once, each with its path.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, cast

import orjson
from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.errors import Invalid, Violation, near
from libs.rpc.names import descriptor_of, enum_name_by_number, enum_names, enum_number_by_name, number, quoted
from libs.rpc.problem import value_to_python

M = TypeVar("M", bound=Message)
Dump = Callable[[Any], Any]

MAX_DEPTH = 64
MAX_VIOLATIONS = 100
_TIMESTAMP = "google.protobuf.Timestamp"
_STRUCT = "google.protobuf.Struct"
_VALUE = "google.protobuf.Value"
_LIST = "google.protobuf.ListValue"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class _Refused(Exception):
    """A value that does not fit; the words and the values that would."""

    def __init__(self, message: str, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.suggestions = tuple(suggestions)


def loads(raw: bytes) -> Any:
    """JSON text to Python; raises Invalid that says where it breaks. Refuses NaN, lone surrogates and text that is not UTF-8."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error}") from error


def dump(message: Message) -> Any:
    """Plain Python for orjson: a dict but for well-known types."""
    return _dump_of(descriptor_of(message))(message)


def parse(message_type: type[M], value: Any) -> M:
    """A new message from plain Python as `loads` gives it; raises Invalid with every violation and nothing else."""
    message = message_type()
    found: list[Violation] = []
    _read_message(message, value, "", found, 1)
    if found:
        raise Invalid.of(found)
    return message


def from_text(field: FieldDescriptor, texts: Sequence[str]) -> Any:
    """What `parse` takes, from the texts of a query parameter or of a part of the path. A text that does not fit stays a text, for
    `parse` to refuse."""
    values = [_from_text(field, text) for text in texts]
    return values if field.is_repeated else values[-1]


# Out


_dumps: dict[str, Dump] = {}


def _dump_of(descriptor: Descriptor) -> Dump:
    dump_message = _dumps.get(descriptor.full_name) or _WELL_KNOWN_DUMPS.get(descriptor.full_name)
    if dump_message is None:
        fields: list[tuple[str, bool, Dump]] = []

        def dump_message(message: Any) -> dict[str, Any]:
            return {
                name: dump_value(getattr(message, name))
                for name, has_presence, dump_value in fields
                if not has_presence or message.HasField(name)
            }

        # Registered before it is filled, for messages that contain themselves.
        _dumps[descriptor.full_name] = dump_message
        fields += [(field.name, field.has_presence, _dump_field(field)) for field in descriptor.fields]
    return dump_message


def _dump_field(field: FieldDescriptor) -> Dump:
    if not field.is_repeated:
        return _dump_value(field)
    if _is_map(field):
        dump_item = _dump_value(_entry(field)[1])
        return lambda items: {_key_text(key): dump_item(item) for key, item in items.items()}
    dump_item = _dump_value(field)
    return lambda items: [dump_item(item) for item in items]


def _dump_value(field: FieldDescriptor) -> Dump:
    if field.message_type is not None:
        return _dump_of(field.message_type)
    if field.enum_type is not None:
        names = enum_name_by_number(field.enum_type)
        return lambda value: names.get(value, str(value))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return lambda value: value if math.isfinite(value) else None
    return lambda value: value


def _key_text(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


_WELL_KNOWN_DUMPS: dict[str, Dump] = {
    _TIMESTAMP: lambda message: message.ToJsonString(),
    _STRUCT: lambda message: {key: _finite(value_to_python(item)) for key, item in message.fields.items()},
    _VALUE: lambda message: _finite(value_to_python(message)),
    _LIST: lambda message: [_finite(value_to_python(item)) for item in message.values],
}


# In


def _read_message(message: Any, value: Any, path: str, found: list[Violation], depth: int) -> None:
    descriptor = descriptor_of(message)
    read = _WELL_KNOWN_READS.get(descriptor.full_name)
    try:
        if depth > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels")
        if read is not None:
            read(message, value, path, found, depth)
            return
        if not isinstance(value, Mapping):
            raise _Refused(f"must be an object, got {_shown(value)}")
    except _Refused as refused:
        found.append(_violation(path, refused))
        return
    fields = _fields_by_name(descriptor)
    prefix = f"{path}." if path else ""
    for name, item in value.items():
        if len(found) > MAX_VIOLATIONS:
            return
        field = fields.get(name)
        if field is None:
            found.append(_unknown(prefix, name, list(fields)))
        elif item is not None or (field.message_type is not None and field.message_type.full_name == _VALUE and not field.is_repeated):
            _read_field(message, field, item, f"{prefix}{name}", found, depth)
    for oneof in descriptor.oneofs:
        given = [field.name for field in oneof.fields if value.get(field.name) is not None]
        if len(given) > 1:
            found.append(Violation(path, f"must have only one of {' and '.join(given)}", tuple(given)))


def _read_field(message: Any, field: FieldDescriptor, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if _is_map(field):
        _read_map(getattr(message, field.name), field, value, path, found, depth)
    elif field.is_repeated:
        _read_list(getattr(message, field.name), field, value, path, found, depth)
    elif field.message_type is not None:
        child = getattr(message, field.name)
        child.SetInParent()
        _read_message(child, value, path, found, depth + 1)
    else:
        try:
            setattr(message, field.name, _scalar(field, value))
        except _Refused as refused:
            found.append(_violation(path, refused))


def _read_list(target: Any, field: FieldDescriptor, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if not isinstance(value, list):
        found.append(Violation(path, f"must be a list, got {_shown(value)}"))
        return
    for index, item in enumerate(value):
        if len(found) > MAX_VIOLATIONS:
            return
        if field.message_type is not None:
            _read_message(target.add(), item, f"{path}[{index}]", found, depth + 1)
            continue
        try:
            target.append(_scalar(field, item))
        except _Refused as refused:
            found.append(_violation(f"{path}[{index}]", refused))


def _read_map(target: Any, field: FieldDescriptor, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if not isinstance(value, Mapping):
        found.append(Violation(path, f"must be an object, got {_shown(value)}"))
        return
    key_field, item_field = _entry(field)
    for name, item in value.items():
        if len(found) > MAX_VIOLATIONS:
            return
        try:
            key = _scalar(key_field, _from_text(key_field, name))
            if item_field.message_type is not None:
                _read_message(target[key], item, f"{path}.{name}", found, depth + 1)
            else:
                target[key] = _scalar(item_field, item)
        except _Refused as refused:
            found.append(_violation(f"{path}.{_clean(name)}", refused))


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field, value)
    kind = field.cpp_type
    if kind in _RANGES:
        return _integer(value, *_RANGES[kind])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _double(value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise _Refused(f"must be true or false, got {_shown(value)}", ("true", "false"))
        return value
    text = _text(value)
    if field.type != FieldDescriptor.TYPE_BYTES:
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _Refused(f"must be base64, got {_shown(value)}") from None


def _enum(field: FieldDescriptor, value: Any) -> int:
    names = enum_names(field.enum_type)
    numbers = enum_number_by_name(field.enum_type)
    chosen = numbers.get(value.lower()) if isinstance(value, str) else None
    if chosen is None:
        suggestions = (near(value, names) if isinstance(value, str) else []) or names
        raise _Refused(f"must be one of {', '.join(names)}; got {_shown(value)}", suggestions)
    return chosen


def _integer(value: Any, least: int, most: int) -> int:
    exact = value
    if isinstance(value, float) and value.is_integer():
        # What a parser makes of more digits than 64 bits hold is a float, and no longer the number that was written.
        exact = int(value) if abs(value) <= 2**53 else most + 1
    if not isinstance(exact, int) or isinstance(exact, bool):
        raise _Refused(f"must be a whole number, got {_shown(value)}")
    if not least <= exact <= most:
        raise _Refused(f"must be a whole number from {least} to {most}, got {_shown(value)}")
    return exact


def _double(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _Refused(f"must be a number, got {_shown(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise _Refused(f"must be a finite number, got {_shown(value)}")
    return result


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused(f"must be a text, got {_shown(value)}")
    if "\0" in value or _clean(value) is not value:
        raise _Refused("must not contain the character NUL or halves of surrogate pairs")
    return value


def _read_timestamp(message: Any, value: Any, path: str, found: list[Violation], depth: int) -> None:
    words = 'must be a time such as "2026-11-23T12:00:00Z"'
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise _Refused(f"{words}, got {_shown(value)}")
    try:
        message.CopyFrom(_timestamp(value.upper()))
    except (ValueError, OverflowError):
        raise _Refused(f"{words}, got {_shown(value)}") from None


def _timestamp(text: str) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromJsonString(text)
    return timestamp


def _read_struct(message: struct_pb2.Struct, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if not isinstance(value, Mapping):
        raise _Refused(f"must be an object, got {_shown(value)}")
    for key, item in value.items():
        if len(found) > MAX_VIOLATIONS:
            return
        where = f"{path}.{_clean(key)}"
        try:
            _read_message(message.fields[_text(key)], item, where, found, depth + 1)
        except _Refused as refused:
            found.append(_violation(where, refused))


def _read_list_value(message: struct_pb2.ListValue, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if not isinstance(value, list):
        raise _Refused(f"must be a list, got {_shown(value)}")
    for index, item in enumerate(value):
        if len(found) > MAX_VIOLATIONS:
            return
        _read_message(message.values.add(), item, f"{path}[{index}]", found, depth + 1)


def _read_value(message: struct_pb2.Value, value: Any, path: str, found: list[Violation], depth: int) -> None:
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        message.string_value = _text(value)
    elif isinstance(value, Mapping):
        message.struct_value.SetInParent()
        _read_struct(message.struct_value, value, path, found, depth)
    elif isinstance(value, list):
        message.list_value.SetInParent()
        _read_list_value(message.list_value, value, path, found, depth)
    else:
        message.number_value = _double(value)
        if isinstance(value, int) and int(message.number_value) != value:
            raise _Refused(f"is too large a whole number to be kept exactly here, got {_shown(value)}")


_WELL_KNOWN_READS: dict[str, Callable[[Any, Any, str, list[Violation], int], None]] = {
    _TIMESTAMP: _read_timestamp,
    _STRUCT: _read_struct,
    _VALUE: _read_value,
    _LIST: _read_list_value,
}


# Both


@cache
def _fields_by_name(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """A plain dict: protobuf's own fails on names that cannot be encoded."""
    return {field.name: field for field in descriptor.fields}


def _entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Key and value of a map."""
    entry = cast(Descriptor, field.message_type)
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def _is_map(field: FieldDescriptor) -> bool:
    return field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry


def _unknown(prefix: str, name: str, names: list[str]) -> Violation:
    close = near(name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"
    return Violation(f"{prefix}{_clean(name)[:100]}", f"is not a field here; {hint}", tuple(close or names[:20]))


def _violation(path: str, refused: _Refused) -> Violation:
    return Violation(path, str(refused), refused.suggestions)


def _clean(text: str) -> str:
    """The very same text, or one that can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {quoted(_clean(value))}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large number"
    if isinstance(value, int | float):
        return number(value)
    return "a list" if isinstance(value, list) else "an object"


def _from_text(field: FieldDescriptor, text: str) -> Any:
    if field.cpp_type in _RANGES and re.fullmatch(r"[+-]?\d{1,30}", text, re.ASCII):
        return int(text)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        try:
            return float(text)
        except ValueError:
            return text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return text
