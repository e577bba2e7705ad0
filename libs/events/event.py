"""One fact: a CloudEvents 1.0 envelope around a protobuf message.

Knows how an event is named and headed; not how it is stored or sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf import symbol_database
from google.protobuf.message import DecodeError, Message
from opentelemetry import propagate

from lepton.common.v1 import options_pb2
from libs.db.ids import new_id
from libs.errors import Poison

CONTENT_TYPE = "application/protobuf"
# The type that stands for a message which is no event of ours, and the extension that says why.
UNREADABLE = "lepton.unreadable"
FLAW = "lepton_flaw"


@dataclass(frozen=True)
class Event:
    """What a service says has happened. `(source, id)` is unique; `key` is the entity's id, and orders events about it."""

    id: str
    source: str
    type: str
    topic: str
    key: str
    time: str
    data: bytes = field(repr=False)
    # Beside the envelope: traceparent, tracestate, and what a dead letter carries.
    extensions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Message, *, key: str) -> "Event":
        """The event that says `message` (a type from some service's events.proto), in the current trace."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        service = message.DESCRIPTOR.full_name.split(".")[1]
        return cls(
            id=new_id("evt"),
            source=f"/lepton/{service}",
            type=message.DESCRIPTOR.full_name,
            topic=topic_of(type(message)),
            key=key,
            time=datetime.now(UTC).isoformat(),
            data=message.SerializeToString(),
            extensions=carrier,
        )

    def message(self) -> Message:
        """The payload, typed. Raises Poison where this code does not know the type or cannot read the bytes."""
        if self.type == UNREADABLE:
            raise Poison(self.extensions.get(FLAW, "the message is no event of ours"))
        try:
            return symbol_database.Default().GetSymbol(self.type).FromString(self.data)
        except KeyError:
            raise Poison(f"no code here knows the event type {self.type}") from None
        except DecodeError:
            raise Poison(f"event {self.id} is no {self.type}") from None

    def headers(self) -> dict[str, str]:
        """The envelope as headers of CloudEvents' Kafka binary mode."""
        return {
            "ce_specversion": "1.0",
            "ce_id": self.id,
            "ce_source": self.source,
            "ce_type": self.type,
            "ce_time": self.time,
            "ce_subject": self.key,
            "content-type": CONTENT_TYPE,
            **self.extensions,
        }

    @classmethod
    def from_headers(cls, topic: str, key: str, headers: Mapping[str, str], data: bytes) -> "Event":
        """The reverse of `headers`. Raises Poison where the envelope is not one of ours."""
        version = headers.get("ce_specversion", "1.0")
        if version != "1.0":
            raise Poison(f"the message says CloudEvents '{version}', not '1.0'")
        try:
            return cls(
                id=headers["ce_id"],
                source=headers["ce_source"],
                type=headers["ce_type"],
                topic=topic,
                key=key,
                time=headers["ce_time"],
                data=data,
                extensions={k: v for k, v in headers.items() if not k.startswith("ce_") and k != "content-type"},
            )
        except KeyError as missing:
            raise Poison(f"the message lacks the header {missing}") from None


def topic_of(message: type[Message]) -> str:
    """`lepton.<service>.<entity>.v1`, from the message's package and its `entity` option."""
    descriptor = message.DESCRIPTOR
    entity: str = descriptor.GetOptions().Extensions[options_pb2.entity]  # type: ignore[index]
    if not entity:
        raise ValueError(f"{descriptor.full_name} has no entity option: it is no event")
    return f"lepton.{descriptor.full_name.split('.')[1]}.{entity}.v1"
