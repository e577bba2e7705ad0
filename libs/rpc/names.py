"""How enums and texts are written in JSON and in messages to people."""

from functools import cache
from typing import cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """Typed as what it behaves like."""
    return cast(Descriptor, message.DESCRIPTOR)


@cache
def enum_names(descriptor: EnumDescriptor) -> list[str]:
    """Short names of the values that mean something, in order: TASK_IMAGE_CLASSIFICATION → "image_classification"."""
    return [name for number, name in _short(descriptor).items() if number != 0 or not _is_unspecified(descriptor)]


@cache
def enum_name_by_number(descriptor: EnumDescriptor) -> dict[int, str]:
    """Every value's short name; the zero value's is "unspecified"."""
    return _short(descriptor)


@cache
def enum_number_by_name(descriptor: EnumDescriptor) -> dict[str, int]:
    """From short and full names in lower case to numbers."""
    short = {name: number for number, name in _short(descriptor).items()}
    return {value.name.lower(): value.number for value in descriptor.values} | short


def quoted(text: str, limit: int = 60) -> str:
    """A value as given, cut to what a person reads."""
    shown = text if len(text) <= limit else text[:limit] + "…"
    return f'"{shown}"'


def number(value: float) -> str:
    """As a person writes it: 1, 0.5, 1e-05."""
    return repr(value).removesuffix(".0")


def _short(descriptor: EnumDescriptor) -> dict[int, str]:
    zero = descriptor.values_by_number[0].name
    prefix = zero.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in descriptor.values}


def _is_unspecified(descriptor: EnumDescriptor) -> bool:
    return descriptor.values_by_number[0].name.endswith("_UNSPECIFIED")
