"""Event log adapter for tests: topics in this process's memory."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

from libs.events.event import Event
from libs.events.log import Received


class InMemoryEventLog:
    """Keeps everything until the process ends; one partition a topic."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._committed: dict[str, int] = defaultdict(int)
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def publish(self, events: Sequence[Event]) -> None:
        async with self._changed:
            self.events.extend(events)
            self._changed.notify_all()

    def subscribe(self, group: str, topics: Sequence[str]) -> "_Subscription":
        return _Subscription(self, group, set(topics))


class _Subscription:
    def __init__(self, log: InMemoryEventLog, group: str, topics: set[str]) -> None:
        self._log, self._group, self._topics = log, group, topics
        self._next = log._committed[group]

    def _ahead(self, limit: int) -> list[Received]:
        ahead = [
            Received(event, 0, position)
            for position, event in enumerate(self._log.events[self._next :], self._next)
            if event.topic in self._topics
        ][:limit]
        if ahead:
            self._next = ahead[-1].position + 1
        return ahead

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        last = time.monotonic() + timeout
        async with self._log._changed:
            # It is woken for other topics too.
            while not (ahead := self._ahead(limit)):
                try:
                    async with asyncio.timeout(last - time.monotonic()):
                        await self._log._changed.wait()
                except TimeoutError:
                    return []
            return ahead

    async def commit(self, received: Sequence[Received]) -> None:
        if received:
            done = max(r.position for r in received) + 1
            self._log._committed[self._group] = max(done, self._log._committed[self._group])

    async def lag(self) -> int:
        ahead = self._log.events[self._log._committed[self._group] :]
        return sum(event.topic in self._topics for event in ahead)

    async def close(self) -> None:
        return None
