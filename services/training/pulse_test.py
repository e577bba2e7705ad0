"""The one query for all watchers: what happens to it when the service ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.training.pulse import Pulse


class SlowDatabase:
    """A query that ends when told."""

    def __init__(self) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self.closed_cleanly = False

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        self.asked.set()
        await self.answers.wait()
        yield self
        self.closed_cleanly = True

    async def execute(self, _query: Any) -> list[Any]:
        return []


async def test_a_query_that_is_under_way_ends_before_the_database_may_close() -> None:
    database = SlowDatabase()
    pulse = Pulse(database)  # type: ignore[arg-type]
    await pulse.start()
    with pulse.watching("job-1") as changed:
        await database.asked.wait()
        stopping = asyncio.create_task(pulse.stop())
        await asyncio.wait_for(changed.wait(), 5)
        assert not stopping.done()
        database.answers.set()
        await asyncio.wait_for(stopping, 5)
    assert database.closed_cleanly


async def test_it_stops_while_nobody_watches() -> None:
    pulse = Pulse(SlowDatabase())  # type: ignore[arg-type]
    await pulse.start()
    await asyncio.sleep(0)
    await asyncio.wait_for(pulse.stop(), 5)
