"""JSON schemas (2020-12, as OpenAPI 3.1 takes them) of messages: types from descriptors, bounds from `rules`, words from proto comments.

Meant to be used once, to build a document that is kept as bytes: comments are read from the descriptor set on demand and not kept.
"""

from collections.abc import Collection, Iterator
from importlib.resources import files
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

from lepton.common.v1 import options_pb2
from libs.rpc.names import enum_name_by_number, enum_names
from libs.rpc.rules import real_oneofs, rules_of

Schema = dict[str, Any]

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
}
# Numbers of fields in descriptor.proto, by which source locations name their place.
_FILE_MESSAGES, _FILE_ENUMS, _FILE_SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS = 2, 3, 4
_VALUES = _METHODS = 2


def read_comments() -> dict[str, str]:
    """From full names of our messages, fields, enums, values, services and methods to the comments above them."""
    described = FileDescriptorSet.FromString(files("lepton").joinpath("descriptors.binpb").read_bytes())
    ours = (file for file in described.file if file.package.startswith("lepton."))
    return {name: comment for file in ours for name, comment in _comments_of(file)}


class Schemas:
    """Collects the schemas of messages that a document refers to.

    Messages that clients send are closed (unknown fields are refused) and require what `rules` require; messages that clients only
    receive list as required what is always there.
    """

    def __init__(self, comments: dict[str, str]) -> None:
        self._comments = comments
        self._messages: dict[str, Descriptor] = {}
        self._sent: set[str] = set()
        self._seen: set[tuple[str, bool]] = set()

    def sent(self, descriptor: Descriptor, without: Collection[str] = ()) -> Schema:
        """The body of a request, less the fields that stand in its path: a reference, or in place if there are such."""
        if not without:
            return self._refer(descriptor, sent=True)
        fields = [field for field in descriptor.fields if field.name not in without]
        for field in fields:
            self._collect(field, sent=True)
        return self._object(descriptor, fields, sent=True)

    def received(self, descriptor: Descriptor) -> Schema:
        """A reference to what an answer holds."""
        return self._refer(descriptor, sent=False)

    def field(self, field: FieldDescriptor) -> Schema:
        """Of a parameter in a path or query."""
        return self._field(field, sent=True)

    def components(self) -> dict[str, Schema]:
        """Everything that has been referred to, by name."""
        return {
            name: self._object(message, message.fields, sent=message.full_name in self._sent)
            for name, message in sorted(self._messages.items())
        }

    def comment(self, full_name: str) -> str:
        """What the proto says about it, on one line."""
        return self._comments.get(full_name, "")

    def _refer(self, descriptor: Descriptor, *, sent: bool) -> Schema:
        if descriptor.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[descriptor.full_name])
        known = self._messages.setdefault(_name(descriptor), descriptor)
        if known.full_name != descriptor.full_name:
            raise ValueError(f"two messages are named {_name(descriptor)}: {known.full_name} and {descriptor.full_name}")
        if (descriptor.full_name, sent) not in self._seen:
            self._seen.add((descriptor.full_name, sent))
            if sent:
                self._sent.add(descriptor.full_name)
            for field in descriptor.fields:
                self._collect(field, sent=sent)
        return {"$ref": f"#/components/schemas/{_name(descriptor)}"}

    def _collect(self, field: FieldDescriptor, *, sent: bool) -> None:
        message = _item_message(field)
        if message is not None:
            self._refer(message, sent=sent)

    def _object(self, descriptor: Descriptor, fields: Collection[FieldDescriptor], *, sent: bool) -> Schema:
        schema: Schema = {"type": "object"}
        if comment := self.comment(descriptor.full_name):
            schema["description"] = comment
        schema["properties"] = {field.name: self._field(field, sent=sent) for field in fields}
        if required := [field.name for field in fields if (must_be_sent(field) if sent else not field.has_presence)]:
            schema["required"] = required
        if sent:
            schema["additionalProperties"] = False
        choices = [[field.name for field in oneof.fields] for oneof in real_oneofs(descriptor)]
        if choices:
            schema["allOf"] = [{"oneOf": [{"required": [name]} for name in names]} for names in choices]
        return schema

    def _field(self, field: FieldDescriptor, *, sent: bool) -> Schema:
        rules = rules_of(field)
        if _is_map(field):
            item = self._value(_map_value(field), rules, required=False, sent=sent)
            schema = _sized({"type": "object", "additionalProperties": item}, rules, "Properties")
        elif field.is_repeated:
            item = self._value(field, rules, required=False, sent=sent)
            schema = _sized({"type": "array", "items": item}, rules, "Items")
        else:
            schema = self._value(field, rules, required=rules.required, sent=sent)
            if schema.get("type") == "string" and "format" not in schema and "enum" not in schema:
                schema = _sized(schema, rules, "Length")
        if comment := self.comment(field.full_name):
            schema["description"] = comment
        return schema

    def _value(self, field: FieldDescriptor, rules: options_pb2.Rules, *, required: bool, sent: bool) -> Schema:
        if field.message_type is not None:
            return self._refer(field.message_type, sent=sent)
        if field.enum_type is not None:
            names = list(enum_name_by_number(field.enum_type).values())
            return {"type": "string", "enum": enum_names(field.enum_type) if required or field.is_repeated else names}
        if field.cpp_type in _INTEGERS:
            return _integer(field, rules, required)
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return _double(rules, sent)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return {"type": "boolean"}
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64", "format": "byte"}
        schema: Schema = {"type": "string"}
        if rules.pattern:
            schema["pattern"] = f"^(?:{rules.pattern})$" if required else f"^(?:{rules.pattern})?$"
        elif sent:
            # What the codec refuses everywhere.
            schema["pattern"] = r"^[^\x00]*$"
        return schema


def must_be_sent(field: FieldDescriptor) -> bool:
    """It is required, or what it is when left out breaks its bounds."""
    rules = rules_of(field)
    if rules.required or field.has_presence:
        return rules.required
    return bool(rules.min_size) or rules.gte > 0 or (rules.HasField("gt") and rules.gt >= 0) or (rules.HasField("lte") and rules.lte < 0)


def _integer(field: FieldDescriptor, rules: options_pb2.Rules, required: bool) -> Schema:
    least, most = _INTEGERS[field.cpp_type]
    if rules.HasField("gte"):
        least = max(least, int(rules.gte))
    if rules.HasField("gt"):
        least = max(least, int(rules.gt) + 1)
    if rules.HasField("lte"):
        most = min(most, int(rules.lte))
    if rules.HasField("lt"):
        most = min(most, int(rules.lt) - 1)
    if required and least == 0:
        least = 1
    names = {
        FieldDescriptor.CPPTYPE_INT32: "int32",
        FieldDescriptor.CPPTYPE_UINT32: "uint32",
        FieldDescriptor.CPPTYPE_INT64: "int64",
        FieldDescriptor.CPPTYPE_UINT64: "uint64",
    }
    return {"type": "integer", "format": names[field.cpp_type], "minimum": least, "maximum": most}


def _double(rules: options_pb2.Rules, sent: bool) -> Schema:
    schema: Schema = {"type": "number" if sent else ["number", "null"], "format": "double"}
    for rule, keyword in {"gt": "exclusiveMinimum", "gte": "minimum", "lt": "exclusiveMaximum", "lte": "maximum"}.items():
        if rules.HasField(rule):
            bound = getattr(rules, rule)
            schema[keyword] = int(bound) if bound.is_integer() else bound
    return schema


def _sized(schema: Schema, rules: options_pb2.Rules, unit: str) -> Schema:
    least = max(rules.min_size, 1 if rules.required else 0)
    if least:
        schema[f"min{unit}"] = least
    if rules.max_size:
        schema[f"max{unit}"] = rules.max_size
    return schema


def _name(descriptor: Descriptor) -> str:
    return descriptor.full_name.split(".v1.")[-1].replace(".", "")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    return cast(Descriptor, field.message_type).fields_by_name["value"]


def _item_message(field: FieldDescriptor) -> Descriptor | None:
    return _map_value(field).message_type if _is_map(field) else field.message_type


def _comments_of(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names = dict(_places(file))
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        if name and location.leading_comments:
            yield name, " ".join(location.leading_comments.split())


def _places(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    for index, message in enumerate(file.message_type):
        yield from _message_places((_FILE_MESSAGES, index), f"{file.package}.{message.name}", message)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_places((_FILE_ENUMS, index), f"{file.package}.{enum.name}", enum)
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (_FILE_SERVICES, index), name
        for place, method in enumerate(service.method):
            yield (_FILE_SERVICES, index, _METHODS, place), f"{name}.{method.name}"


def _message_places(path: tuple[int, ...], name: str, message: DescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, _FIELDS, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message_places((*path, _NESTED, index), f"{name}.{nested.name}", nested)
    for index, enum in enumerate(message.enum_type):
        yield from _enum_places((*path, _NESTED_ENUMS, index), f"{name}.{enum.name}", enum)


def _enum_places(path: tuple[int, ...], name: str, enum: EnumDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, _VALUES, index), f"{name}.{value.name}"
