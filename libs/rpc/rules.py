"""Checks a message by the `rules` that its proto states, before any handler sees it.

Each message type is compiled once into a list of small checks. NaN, infinity and enum numbers without a name are refused everywhere;
of a oneof one member must be set.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from lepton.common.v1 import options_pb2
from libs.errors import Invalid, Violation
from libs.rpc.names import descriptor_of, enum_names, number, quoted

# (message, path of the message with a trailing dot or "", what is found goes here)
Check = Callable[[Any, str, list[Violation]], None]
# (value, path of the value, what is found goes here)
ValueCheck = Callable[[Any, str, list[Violation]], None]

MAX_VIOLATIONS = 100
# The stubs type extensions as plain fields.
_RULES: Any = options_pb2.rules
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_NUMBERS = (
    *_FLOATS,
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)
_compiled: dict[str, list[Check]] = {}


def check(message: Message) -> list[Violation]:
    """Everything that is wrong with `message`, at most about a hundred things; paths like `steps[2].cast.column`."""
    found: list[Violation] = []
    for each in _checks_of(descriptor_of(message)):
        each(message, "", found)
    return found


def validate(message: Message) -> None:
    """Raises Invalid with everything that is wrong."""
    found = check(message)
    if found:
        raise Invalid.of(found)


def rules_of(field: FieldDescriptor) -> options_pb2.Rules:
    """The field's rules; empty where it states none."""
    rules: options_pb2.Rules = field.GetOptions().Extensions[_RULES]
    return rules


def _checks_of(descriptor: Descriptor) -> list[Check]:
    checks = _compiled.get(descriptor.full_name)
    if checks is None:
        # Registered before it is filled, for messages that contain themselves.
        checks = _compiled[descriptor.full_name] = []
        checks += [each for field in descriptor.fields for each in _field_checks(field)]
        checks += [_one_of(oneof) for oneof in real_oneofs(descriptor)]
    return checks


def real_oneofs(descriptor: Descriptor) -> list[OneofDescriptor]:
    """Without those that stand for a single `optional`."""
    return [oneof for oneof in descriptor.oneofs if not (len(oneof.fields) == 1 and oneof.name.startswith("_"))]


def _one_of(oneof: OneofDescriptor) -> Check:
    name = oneof.name
    options = tuple(field.name for field in oneof.fields)

    def run(message: Any, path: str, found: list[Violation]) -> None:
        if message.WhichOneof(name) is None:
            found.append(Violation(path.removesuffix("."), f"must have one of {', '.join(options)}", options))

    return run


def _field_checks(field: FieldDescriptor) -> list[Check]:
    rules = rules_of(field)
    if field.is_repeated:
        return _repeated_checks(field, rules)
    value_checks = _value_checks(field, rules) + _size_checks(field, rules)
    name = field.name
    if field.has_presence:
        return _optional_checks(name, value_checks, rules.required)
    checks: list[Check] = []
    if rules.required:
        checks.append(_filled(name, field))
        # What is empty has been reported as missing.
        return [*checks, *_when_filled(name, value_checks)]
    if value_checks:
        checks.append(_always(name, value_checks))
    return checks


def _always(name: str, value_checks: list[ValueCheck]) -> Check:
    def run(message: Any, path: str, found: list[Violation]) -> None:
        value = getattr(message, name)
        for each in value_checks:
            each(value, path + name, found)

    return run


def _when_filled(name: str, value_checks: list[ValueCheck]) -> list[Check]:
    def run(message: Any, path: str, found: list[Violation]) -> None:
        value = getattr(message, name)
        if value:
            for each in value_checks:
                each(value, path + name, found)

    return [run] if value_checks else []


def _optional_checks(name: str, value_checks: list[ValueCheck], required: bool) -> list[Check]:
    def run(message: Any, path: str, found: list[Violation]) -> None:
        if message.HasField(name):
            value = getattr(message, name)
            for each in value_checks:
                each(value, path + name, found)
        elif required:
            found.append(Violation(path + name, "is required"))

    return [run] if value_checks or required else []


def _filled(name: str, field: FieldDescriptor) -> Check:
    suggestions = tuple(enum_names(field.enum_type)) if field.enum_type else ()
    words = f"is required: one of {', '.join(suggestions)}" if suggestions else "is required"

    def run(message: Any, path: str, found: list[Violation]) -> None:
        if not getattr(message, name):
            found.append(Violation(path + name, words, suggestions))

    return run


def _repeated_checks(field: FieldDescriptor, rules: options_pb2.Rules) -> list[Check]:
    name = field.name
    entry = field.message_type if field.message_type and field.message_type.GetOptions().map_entry else None
    item_checks = _value_checks(entry.fields_by_name["value"] if entry else field, rules)
    checks: list[Check] = []
    if rules.required:
        checks.append(_filled(name, field))
    if rules.min_size or rules.max_size:
        size_check = _size(rules, "keys" if entry else "items")
        checks.append(_always(name, [size_check]))
    if item_checks:
        checks.append(_each_entry(name, item_checks) if entry else _each_item(name, item_checks))
    return checks


def _each_item(name: str, item_checks: list[ValueCheck]) -> Check:
    def run(message: Any, path: str, found: list[Violation]) -> None:
        for index, item in enumerate(getattr(message, name)):
            for each in item_checks:
                each(item, f"{path}{name}[{index}]", found)
            if len(found) > MAX_VIOLATIONS:
                return

    return run


def _each_entry(name: str, item_checks: list[ValueCheck]) -> Check:
    def run(message: Any, path: str, found: list[Violation]) -> None:
        for key, item in getattr(message, name).items():
            for each in item_checks:
                each(item, f"{path}{name}.{key}", found)
            if len(found) > MAX_VIOLATIONS:
                return

    return run


def _value_checks(field: FieldDescriptor, rules: options_pb2.Rules) -> list[ValueCheck]:
    """Checks of one value: of a singular field, or of an item of a repeated one."""
    if field.message_type is not None:
        return _message_checks(field.message_type)
    if field.enum_type is not None:
        return [_known_enum(field.enum_type)]
    checks: list[ValueCheck] = []
    if field.cpp_type in _FLOATS:
        checks.append(_finite)
    if field.cpp_type in _NUMBERS and (bounds := _bounds(rules)):
        checks.append(_bounded(bounds))
    if rules.pattern and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        checks.append(_matches(rules))
    return checks


def _message_checks(descriptor: Descriptor) -> list[ValueCheck]:
    special: dict[str, ValueCheck] = {
        "google.protobuf.Struct": _struct,
        "google.protobuf.Value": _value,
        "google.protobuf.ListValue": _list_value,
    }
    if descriptor.full_name in special:
        return [special[descriptor.full_name]]
    checks = _checks_of(descriptor)

    def run(value: Any, path: str, found: list[Violation]) -> None:
        prefix = path + "."
        for each in checks:
            each(value, prefix, found)

    return [run]


def _finite(value: float, path: str, found: list[Violation]) -> None:
    if not math.isfinite(value):
        found.append(Violation(path, f"must be a finite number, got {value}"))


def _struct(value: struct_pb2.Struct, path: str, found: list[Violation]) -> None:
    for key, item in value.fields.items():
        _value(item, f"{path}.{key}", found)


def _value(value: struct_pb2.Value, path: str, found: list[Violation]) -> None:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        _finite(value.number_value, path, found)
    elif kind == "struct_value":
        _struct(value.struct_value, path, found)
    elif kind == "list_value":
        _list_value(value.list_value, path, found)


def _list_value(value: struct_pb2.ListValue, path: str, found: list[Violation]) -> None:
    for index, item in enumerate(value.values):
        _value(item, f"{path}[{index}]", found)


def _known_enum(enum: EnumDescriptor) -> ValueCheck:
    known = enum.values_by_number
    names = tuple(enum_names(enum))

    def run(value: int, path: str, found: list[Violation]) -> None:
        if value not in known:
            found.append(Violation(path, f"must be one of {', '.join(names)}; got number {value}", names))

    return run


def _bounds(rules: options_pb2.Rules) -> list[tuple[Callable[[float], bool], str]]:
    bounds: list[tuple[Callable[[float], bool], str]] = []
    if rules.HasField("gt"):
        bounds.append((rules.gt.__lt__, f"must be greater than {number(rules.gt)}"))
    if rules.HasField("gte"):
        bounds.append((rules.gte.__le__, f"must be at least {number(rules.gte)}"))
    if rules.HasField("lt"):
        bounds.append((rules.lt.__gt__, f"must be less than {number(rules.lt)}"))
    if rules.HasField("lte"):
        bounds.append((rules.lte.__ge__, f"must be at most {number(rules.lte)}"))
    return bounds


def _bounded(bounds: Sequence[tuple[Callable[[float], bool], str]]) -> ValueCheck:
    def run(value: float, path: str, found: list[Violation]) -> None:
        for holds, words in bounds:
            if not holds(value) and math.isfinite(value):
                found.append(Violation(path, f"{words}, got {number(value)}"))

    return run


def _matches(rules: options_pb2.Rules) -> ValueCheck:
    matches = re.compile(rules.pattern).fullmatch
    words = rules.pattern_help or f"text that matches {rules.pattern}"

    def run(value: str, path: str, found: list[Violation]) -> None:
        # An empty text is one that was left out.
        if value and matches(value) is None:
            found.append(Violation(path, f"must be {words}, got {quoted(value)}"))

    return run


def _size_checks(field: FieldDescriptor, rules: options_pb2.Rules) -> list[ValueCheck]:
    if not (rules.min_size or rules.max_size):
        return []
    return [_size(rules, "bytes" if field.type == FieldDescriptor.TYPE_BYTES else "characters")]


def _size(rules: options_pb2.Rules, unit: str) -> ValueCheck:
    least, most = rules.min_size, rules.max_size

    def run(value: Any, path: str, found: list[Violation]) -> None:
        size = len(value)
        if size < least:
            found.append(Violation(path, f"must have at least {least} {unit}, got {size}"))
        elif most and size > most:
            found.append(Violation(path, f"must have at most {most} {unit}, got {size}"))

    return run
