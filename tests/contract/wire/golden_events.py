"""Events as they were once written, which every later version must read: one JSON file an event type in golden/.

`python -m tests.contract.wire.golden_events` writes the files that are missing. A file that is there is never written again: events like
it lie in somebody's log.
"""

import base64
import json
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from libs.events import Event, topic_of
from tests.contract.wire.catalogue import EVENTS, service_of

FOLDER = Path(__file__).with_name("golden")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TIME = "2026-11-20T12:00:00.000001+00:00"


def path_of(name: str) -> Path:
    """Where the golden event of a type is."""
    return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """{"topic", "key", "headers", "data" (bytes), "message" (protobuf's JSON with the fields' own names)}."""
    golden: dict[str, Any] = json.loads(path_of(name).read_text())
    return {**golden, "data": base64.b64decode(golden["data"])}


def as_json(message: Message) -> dict[str, Any]:
    """What a message says, in a form that does not change with the order of fields on the wire."""
    return MessageToDict(message, preserving_proto_field_name=True)


def sample(kind: type[Message]) -> Message:
    """A message with every field set, each to a value that tells it apart."""
    message = kind()
    _fill(message)
    return message


def write_missing() -> list[str]:
    """The names of the types that had no file."""
    missing = [name for name in EVENTS if not path_of(name).exists()]
    for name in missing:
        path_of(name).write_text(json.dumps(_golden(EVENTS[name]), indent=2) + "\n")
    return missing


def _golden(kind: type[Message]) -> dict[str, Any]:
    message = sample(kind)
    event = Event(
        id="evt-01h455vb4pex5vsknk084sn02q",
        source=f"/lepton/{service_of(kind.DESCRIPTOR.full_name)}",
        type=kind.DESCRIPTOR.full_name,
        topic=topic_of(kind),
        key="acme/golden",
        time=TIME,
        data=message.SerializeToString(deterministic=True),
        extensions={"traceparent": TRACEPARENT},
    )
    data = base64.b64encode(event.data).decode()
    return {"topic": event.topic, "key": event.key, "headers": event.headers(), "data": data, "message": as_json(message)}


def _fill(message: Message) -> None:
    # Well-known types have forms of their own; of a oneof the last member set is the one that stays.
    match message.DESCRIPTOR.full_name:
        case "google.protobuf.Timestamp":
            message.FromJsonString("2026-11-20T11:59:58.765432Z")  # type: ignore[attr-defined]
        case "google.protobuf.Struct":
            message.update({"hidden": [64, 64], "activation": "relu", "nested": {"on": True, "off": None}})  # type: ignore[attr-defined]
        case "google.protobuf.Value":
            message.string_value = "value"  # type: ignore[attr-defined]
        case _:
            for field in message.DESCRIPTOR.fields:
                _set(message, field)


def _set(message: Any, field: FieldDescriptor) -> None:
    held = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        held["accuracy"] = _scalar(field.message_type.fields_by_name["value"])
    elif field.message_type is not None:
        _fill(held.add() if field.is_repeated else held)
    elif field.is_repeated:
        held.extend([_scalar(field), _scalar(field)])
    else:
        setattr(message, field.name, _scalar(field))


def _scalar(field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return field.number + 0.25
        case FieldDescriptor.CPPTYPE_STRING:
            return field.name.encode() if field.type == FieldDescriptor.TYPE_BYTES else f"{field.name} é"
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return (1 << 53) + field.number
        case _:
            return field.number


if __name__ == "__main__":
    print("\n".join(f"wrote {name}" for name in write_missing()) or "every event has its file")
