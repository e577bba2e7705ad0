"""Applies events to a database, each once: the inbox row and the handler's effect are one transaction.

An error that time may mend (Transient, a full disk) is tried again for as long as it takes, and what stands behind waits; Poison goes
to the dead letters at once; anything else is tried five times before. Dead letters in an unbroken row of `dead_limit` stop the
consumer: then it is not the events that are wrong.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from google.protobuf.message import Message
from opentelemetry import propagate, trace
from sqlalchemy import delete, insert, select

from libs.db.database import Database
from libs.db.infrastructure import inbox
from libs.db.unit import Unit
from libs.errors import AppError, Poison, Transient
from libs.events.current import handling
from libs.events.dead_letter import dead_letter, retry_topic
from libs.events.event import UNREADABLE, topic_of
from libs.events.log import EventLog, Received
from libs.telemetry import Sampler, counter, gauge

log = structlog.get_logger()

Handler = Callable[[Unit, Any], Awaitable[None]]
BATCH = 200
TRIES = 5
INBOX_SECONDS = 30 * 86400.0
_handled = counter("lepton_events_handled_total", "Events that are done with: applied, duplicate or dead.", ("consumer", "outcome"))
_retries = counter("lepton_event_retries_total", "Times that an event was put off.", ("consumer",))
_lag = gauge("lepton_consumer_lag_events", "Events of a consumer's topics that it has not committed yet.", ("consumer",))


def handles(*pairs: tuple[type[Message], Handler]) -> dict[type[Message], Handler]:
    """The table of a service's reactions: which event type calls which handler `on_…(unit, message)`."""
    return dict(pairs)


class Consumer:
    """One service's reading of others' facts. A handler awaits no network: it changes rows, and wakes what does the work."""

    def __init__(
        self,
        service: str,
        database: Database,
        event_log: EventLog,
        handlers: Mapping[type[Message], Handler],
        *,
        dead_limit: int = 100,
    ) -> None:
        self._service, self._database, self._log = service, database, event_log
        self._handlers = {message.DESCRIPTOR.full_name: handler for message, handler in handlers.items()}
        topics = {topic_of(message) for message in handlers}
        self._subscription = event_log.subscribe(service, [*topics, retry_topic(service)])
        self._dead_limit = dead_limit
        self._dead_in_a_row = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        # For events, with none in hand.
        self._waiting = False
        self._tracer = trace.get_tracer(service)
        self._sampler = Sampler(f"{service}-consumer", self._sample, [_lag], consumer=service)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"{self._service}-consumer")
        await self._sampler.start()

    async def stop(self) -> None:
        """Ends after the event in hand."""
        self._stopping.set()
        await self._sampler.stop()
        if self._task:
            if self._waiting:
                self._task.cancel()
            await asyncio.wait([self._task], timeout=5)
            self._task.cancel()
        await self._subscription.close()

    async def lag(self) -> int:
        """Events of its topics that are not committed yet."""
        return await self._subscription.lag()

    async def _sample(self) -> None:
        _lag.set(await self.lag(), consumer=self._service)

    async def _run(self) -> None:
        swept = 0.0
        while not self._stopping.is_set():
            try:
                self._waiting = True
                batch = await self._subscription.poll(BATCH, 0.5)
                self._waiting = False
            except AppError as error:
                log.warning("consumer_poll_failed", consumer=self._service, error=str(error))
                await asyncio.sleep(0.5)
                continue
            done = []
            for received in batch:
                if not await self._apply(received):
                    return
                done.append(received)
                if self._stopping.is_set():
                    break
            if done:
                await self._commit(done)
            elif time.monotonic() - swept > 3600:
                swept = time.monotonic()
                await self._sweep_inbox()

    async def _commit(self, done: list[Received]) -> None:
        try:
            await self._subscription.commit(done)
        except AppError as error:
            # The inbox knows them: that they come again does no harm.
            log.warning("consumer_commit_failed", consumer=self._service, error=str(error))

    async def _apply(self, received: Received) -> bool:
        """Handles one event for good; False when the consumer must stop."""
        tries = 0
        while True:
            tries += 1
            try:
                await self._handle(received)
                self._dead_in_a_row = 0
                return True
            except Exception as error:
                if isinstance(error, Poison) or (tries >= TRIES and not _may_pass(error)):
                    try:
                        return await self._bury(received, error)
                    except AppError as failure:
                        log.warning("dead_letter_not_written", consumer=self._service, event_id=received.event.id, error=str(failure))
                else:
                    _retries.add(1, consumer=self._service)
                    log.warning("event_retried", consumer=self._service, event_id=received.event.id, tries=tries, error=str(error))
            if self._stopping.is_set():
                return False
            try:
                async with asyncio.timeout(min(5.0, 0.05 * 2**tries)):
                    await self._stopping.wait()
                return False
            except TimeoutError:
                continue

    async def _handle(self, received: Received) -> None:
        event = received.event
        if event.type == UNREADABLE:
            event.message()
        handler = self._handlers.get(event.type)
        if handler is None:
            return
        message = event.message()
        parent = propagate.extract(dict(event.extensions))
        with self._tracer.start_as_current_span(f"handle {event.type.rsplit('.', 1)[-1]}", context=parent, kind=trace.SpanKind.CONSUMER):
            async with self._database.unit() as unit:
                first_time = await self._first_time(unit, received)
                if first_time:
                    with handling(event):
                        await handler(unit, message)
        _handled.add(1, consumer=self._service, outcome="applied" if first_time else "duplicate")

    async def _first_time(self, unit: Unit, received: Received) -> bool:
        source, event_id = received.event.source, received.event.id
        if replayed := received.event.extensions.get("lepton_replay"):
            event_id = f"{event_id}#{replayed}"
        where = (inbox.c.source == source, inbox.c.event_id == event_id)
        if (await unit.session.execute(select(inbox.c.time).where(*where))).first():
            return False
        await unit.session.execute(insert(inbox).values(source=source, event_id=event_id, time=time.time()))
        return True

    async def _bury(self, received: Received, error: Exception) -> bool:
        log.error("event_dead", consumer=self._service, event_id=received.event.id, type=received.event.type, error=repr(error))
        async with self._database.unit() as unit:
            if await self._first_time(unit, received):
                await unit.emit(dead_letter(self._service, received, error))
        _handled.add(1, consumer=self._service, outcome="dead")
        self._dead_in_a_row += 1
        if self._dead_in_a_row >= self._dead_limit:
            log.critical("consumer_stopped", consumer=self._service, dead_in_a_row=self._dead_in_a_row)
            return False
        return True

    async def _sweep_inbox(self) -> None:
        try:
            async with self._database.unit() as unit:
                await unit.session.execute(delete(inbox).where(inbox.c.time < time.time() - INBOX_SECONDS))
        except AppError as error:
            log.warning("inbox_not_swept", consumer=self._service, error=str(error))


def _may_pass(error: Exception) -> bool:
    """Whether it says nothing of the event: a dependency is away, or a disk is full."""
    return isinstance(error, Transient) or (isinstance(error, AppError) and error.entry.retryable)
