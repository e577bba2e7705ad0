"""Carries events from a database's outbox to the event log, in order, at least once."""

from collections import Counter

from sqlalchemy import delete, func, select

from libs.db.database import Database
from libs.db.infrastructure import outbox
from libs.events.event import Event
from libs.events.log import EventLog
from libs.lifecycle import Loop
from libs.telemetry import Sampler, counter, gauge

BATCH = 500
_published = counter("lepton_events_published_total", "Events that the log has taken.", ("topic",))
_waiting = gauge("lepton_outbox_waiting_events", "Events in a database's outbox that the log has not taken yet.", ("service",))


class Relay:
    """Woken by every commit of this process that emits; looks by itself every `interval` seconds for what others left.

    Several may carry one outbox: each begins with the first event that is still there, so events are doubled but come in order the first
    time, and the first time counts.
    """

    def __init__(self, database: Database, log: EventLog, *, name: str, interval: float = 2.0) -> None:
        self._database, self._log, self._name = database, log, name
        self._sampler = Sampler(f"{name}-relay", self._sample, [_waiting], service=name)
        self._loop = Loop(f"{name}-relay", self._carry, interval=interval)
        database.on_emit(self._loop.wake)

    async def start(self) -> None:
        await self._loop.start()
        await self._sampler.start()

    async def stop(self) -> None:
        """Carries what is there, then ends."""
        await self._sampler.stop()
        await self._loop.stop()
        await self._carry()

    async def _carry(self) -> bool:
        async with self._database.read() as session:
            rows = (await session.execute(select(outbox).order_by(outbox.c.position).limit(BATCH))).all()
        if not rows:
            return False
        await self._log.publish([Event.from_headers(r.topic, r.key, r.headers, r.data) for r in rows])
        for topic, count in Counter(r.topic for r in rows).items():
            _published.add(count, topic=topic)
        async with self._database.unit() as unit:
            await unit.session.execute(delete(outbox).where(outbox.c.position.in_([r.position for r in rows])))
        return len(rows) == BATCH

    async def _sample(self) -> None:
        async with self._database.read() as session:
            _waiting.set((await session.execute(select(func.count()).select_from(outbox))).scalar_one(), service=self._name)
