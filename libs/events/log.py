"""The event log port: durable topics that groups of consumers read in order."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from pydantic import Field, SecretStr, model_validator

from libs.errors import Poison
from libs.events.event import FLAW, UNREADABLE, Event
from libs.settings import Block


class EventLogSettings(Block):
    """`url`: "sqlite:////path/events.db", "kafka://host:9092,other:9092" or "memory:". All but the retention is for Kafka alone.

    Of a topic that is made: `partitions`, how many members of a group can share the work; `replication`, brokers that keep a copy.
    TLS where `ca_file` or `cert_file` (with `key_file`) is set, a login where `username` and `password` are.
    """

    url: str = "memory:"
    retention_seconds: float = Field(default=7 * 86400, gt=0)
    partitions: int = Field(default=6, ge=1)
    replication: int = Field(default=1, ge=1)
    username: str = ""
    password: SecretStr = SecretStr("")
    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = "SCRAM-SHA-512"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @model_validator(mode="after")
    def _refuse_halves(self) -> "EventLogSettings":
        kafka = self.url.startswith("kafka:")
        if not kafka and (alone := self.model_fields_set - {"url", "retention_seconds"}):
            raise ValueError(f"{', '.join(sorted(alone))}: a setting for Kafka, and url names another event log")
        if kafka and not re.fullmatch(r"kafka://[^,/@\s]+(,[^,/@\s]+)*", self.url):
            raise ValueError(
                "url must be kafka://host:port, or more of them as host:port,host:port; a login goes into username and password"
            )
        if bool(self.username) != bool(self.password.get_secret_value()):
            raise ValueError("username and password: set both, or neither")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file: set both, or neither")
        if "mechanism" in self.model_fields_set and not self.username:
            raise ValueError("mechanism: says how to log in, and no username is set")
        if self.username and self.mechanism == "PLAIN" and not (self.ca_file or self.cert_file):
            raise ValueError("mechanism PLAIN sends the password as it is: set ca_file, or take SCRAM-SHA-512")
        return self


@dataclass(frozen=True)
class Received:
    """An event as a subscription gave it. `position` orders events within (topic, partition)."""

    event: Event
    partition: int
    position: int


def receive(topic: str, key: str, headers: Mapping[str, str], data: bytes, partition: int, position: int) -> Received:
    """What lies in a log, as a subscription gives it."""
    try:
        return Received(Event.from_headers(topic, key, headers, data), partition, position)
    except Poison as flaw:
        return unreadable(topic, key, data, partition, position, flaw.detail)


def unreadable(topic: str, key: str, data: bytes, partition: int, position: int, flaw: str) -> Received:
    """Stands for a message that is no event of ours: handled as every event is, it goes to the dead letters with `flaw` as the reason."""
    digest = hashlib.sha256(f"{topic}/{partition}/{position}/".encode() + data).hexdigest()
    event = Event(
        id=f"unr_{digest[:32]}",
        source="/lepton/unreadable",
        type=UNREADABLE,
        topic=topic,
        key=key,
        time=datetime.now(UTC).isoformat(),
        data=data,
        extensions={FLAW: flaw},
    )
    return Received(event, partition, position)


class Subscription(Protocol):
    """One member of a group. A group gets every event of its topics at least once; what it has not committed comes again."""

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        """The next events, in order within a key; waits up to `timeout` seconds for a first one."""
        ...

    async def commit(self, received: Sequence[Received]) -> None:
        """These and all before them need not come again."""
        ...

    async def lag(self) -> int:
        """Events of its topics that are not committed yet."""
        ...

    async def close(self) -> None: ...


class EventLog(Protocol):
    """Where facts are kept. A new group reads from the beginning of what is retained."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def publish(self, events: Sequence[Event]) -> None:
        """Returns when all of them would survive a crash. Raises Transient when they may not have been kept."""
        ...

    def subscribe(self, group: str, topics: Sequence[str]) -> Subscription: ...
