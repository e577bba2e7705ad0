"""The event log port: durable topics that groups of consumers read in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from libs.events.event import Event
from libs.settings import Block


class EventLogSettings(Block):
    """`url`: "sqlite:////path/events.db" or "memory:"."""

    url: str = "memory:"
    retention_seconds: float = 7 * 86400


@dataclass(frozen=True)
class Received:
    """An event as a subscription gave it. `position` orders events within (topic, partition)."""

    event: Event
    partition: int
    position: int


class Subscription(Protocol):
    """One member of a group. A group gets every event of its topics at least once; what it has not committed comes again."""

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        """The next events, in order within a key; waits up to `timeout` seconds for a first one."""
        ...

    async def commit(self, received: Sequence[Received]) -> None:
        """These and all before them need not come again."""
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
