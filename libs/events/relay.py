"""Carries events from a database's outbox to the event log, in order, at least once."""

from sqlalchemy import delete, select

from libs.db.database import Database
from libs.db.infrastructure import outbox
from libs.events.event import Event
from libs.events.log import EventLog
from libs.lifecycle import Loop

BATCH = 500


class Relay:
    """Woken by every commit of this process that emits; looks by itself every `interval` seconds for what others left."""

    def __init__(self, database: Database, log: EventLog, *, name: str, interval: float = 2.0) -> None:
        self._database, self._log = database, log
        self._loop = Loop(f"{name}-relay", self._carry, interval=interval)
        database.on_emit(self._loop.wake)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        """Carries what is there, then ends."""
        await self._loop.stop()
        await self._carry()

    async def _carry(self) -> bool:
        async with self._database.read() as session:
            rows = (await session.execute(select(outbox).order_by(outbox.c.position).limit(BATCH))).all()
        if not rows:
            return False
        await self._log.publish([Event.from_headers(r.topic, r.key, r.headers, r.data) for r in rows])
        async with self._database.unit() as unit:
            await unit.session.execute(delete(outbox).where(outbox.c.position.in_([r.position for r in rows])))
        return len(rows) == BATCH
