"""From outbox to handler, every effect once, whatever fails on the way."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func, insert, select

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseSettings, Unit
from libs.db.infrastructure import metadata as infrastructure
from libs.errors import Poison, Transient
from libs.events import (
    Consumer,
    Event,
    EventLogSettings,
    InMemoryEventLog,
    Received,
    Relay,
    current_event,
    handles,
    open_event_log,
    replay_dead_letters,
    waiting_dead_letters,
)
from libs.events.dead_letter import dead_letter, dead_topic, retry_topic
from libs.events.in_memory import _Subscription as InMemorySubscription
from libs.events.log import unreadable

tables = sa.MetaData()
effects = sa.Table("effects", tables, sa.Column("number", sa.Integer))


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    database = Database(DatabaseSettings())
    async with database.engine.begin() as connection:
        await connection.run_sync(infrastructure.create_all)
        await connection.run_sync(tables.create_all)
    yield database
    await database.stop()


def ready(number: int) -> Event:
    return Event.of(DatasetVersionReady(version=DatasetVersion(number=number)), key="acme/iris")


async def numbers(database: Database) -> list[int]:
    async with database.read() as session:
        return list((await session.execute(select(effects.c.number))).scalars())


async def consume(database: Database, log: InMemoryEventLog, handler: Any, count: int) -> None:
    """Runs a consumer until `count` events are committed."""
    consumer = Consumer("tests", database, log, handles((DatasetVersionReady, handler)))
    await consumer.start()
    for _ in range(2000):
        if log._committed["tests"] >= count:
            break
        await asyncio.sleep(0.005)
    await consumer.stop()


async def record(unit: Unit, message: DatasetVersionReady) -> None:
    await unit.session.execute(insert(effects).values(number=message.version.number))


async def test_an_event_is_published_only_if_its_unit_commits(database: Database) -> None:
    log = InMemoryEventLog()
    relay = Relay(database, log, name="tests")
    with pytest.raises(RuntimeError):
        async with database.unit() as unit:
            await unit.emit(ready(1))
            raise RuntimeError
    async with database.unit() as unit:
        await unit.emit(ready(2))
    await relay.stop()
    assert [e.message().version.number for e in log.events] == [2]


async def test_a_duplicate_has_no_second_effect(database: Database) -> None:
    log = InMemoryEventLog()
    event = ready(1)
    await log.publish([event, event, ready(2)])
    await consume(database, log, record, 3)
    assert await numbers(database) == [1, 2]


async def test_a_handler_knows_its_event(database: Database) -> None:
    log, seen = InMemoryEventLog(), []

    async def note(unit: Unit, message: DatasetVersionReady) -> None:
        seen.append(current_event().id)

    event = ready(1)
    await log.publish([event])
    await consume(database, log, note, 1)
    assert seen == [event.id]


async def test_a_crash_before_the_commit_has_one_effect(database: Database) -> None:
    log = InMemoryEventLog()
    await log.publish([ready(1)])
    await consume(database, log, record, 1)
    log._committed["tests"] = 0
    await consume(database, log, record, 1)
    assert await numbers(database) == [1]


async def test_a_handler_that_fails_leaves_nothing_and_is_tried_again(database: Database) -> None:
    log = InMemoryEventLog()
    await log.publish([ready(1), ready(2)])
    tries = 0

    async def flaky(unit: Unit, message: DatasetVersionReady) -> None:
        nonlocal tries
        await record(unit, message)
        tries += 1
        if tries < 3:
            raise Transient("away")

    await consume(database, log, flaky, 2)
    assert await numbers(database) == [1, 2]


async def test_poison_is_put_aside_with_its_reason_and_can_be_replayed(database: Database) -> None:
    log = InMemoryEventLog()
    await log.publish([ready(1), ready(2)])

    async def picky(unit: Unit, message: DatasetVersionReady) -> None:
        if message.version.number == 1:
            raise Poison("one is not a number")
        await record(unit, message)

    await consume(database, log, picky, 2)
    assert await numbers(database) == [2]
    await Relay(database, log, name="tests").stop()
    (dead,) = [e for e in log.events if e.topic == dead_topic("tests")]
    assert dead.extensions["lepton_dead_reason"] == "one is not a number"
    assert dead.extensions["lepton_dead_topic"] == "lepton.data.dataset.v1"

    (waiting,) = await waiting_dead_letters(log, "tests")
    assert waiting.event.id == dead.id
    assert await replay_dead_letters(log, "tests") == 1
    assert await waiting_dead_letters(log, "tests") == []
    await consume(database, log, record, 4)
    assert await numbers(database) == [2, 1]
    assert await replay_dead_letters(log, "tests") == 0


async def test_the_outbox_is_empty_once_published(database: Database) -> None:
    log = InMemoryEventLog()
    async with database.unit() as unit:
        await unit.emit(*[ready(n) for n in range(1200)])
    await Relay(database, log, name="tests").stop()
    await Relay(database, log, name="tests").stop()
    await Relay(database, log, name="tests").stop()
    assert [e.message().version.number for e in log.events] == list(range(1200))
    async with database.read() as session:
        assert (await session.execute(select(func.count()).select_from(infrastructure.tables["outbox"]))).scalar() == 0


async def test_two_relays_of_one_outbox_double_events_and_swap_none(database: Database) -> None:
    """What a relay publishes begins with the first event that no relay has published for good, so the first time of each is in order."""
    luck = random.Random(7)

    class Slow(InMemoryEventLog):
        async def publish(self, events: Sequence[Event]) -> None:
            await asyncio.sleep(luck.uniform(0, 0.02))
            if luck.random() < 0.05:
                raise Transient("away")
            await super().publish(events)
            await asyncio.sleep(luck.uniform(0, 0.02))

    log = Slow()
    relays = [Relay(database, log, name=f"tests-{n}", interval=0.01) for n in range(2)]
    for relay in relays:
        await relay.start()
    for number in range(0, 300, 3):
        async with database.unit() as unit:
            await unit.emit(*[ready(n) for n in range(number, number + 3)])
        await asyncio.sleep(luck.uniform(0, 0.01))
    async with asyncio.timeout(30):
        while await waiting_in(database):  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.01)
    for relay in relays:
        await relay._loop.stop()
    published = [e.message().version.number for e in log.events]
    assert list(dict.fromkeys(published)) == list(range(300))
    assert len(published) > 300


async def waiting_in(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(func.count()).select_from(infrastructure.tables["outbox"]))).scalar_one()


async def test_what_is_no_event_is_buried_with_its_reason(database: Database) -> None:
    log = InMemoryEventLog()
    strange = unreadable("lepton.data.dataset.v1", "k", b"?", 0, 3, "the message lacks the header 'ce_id'")
    assert strange.event.id == unreadable("lepton.data.dataset.v1", "k", b"?", 0, 3, "again").event.id
    await log.publish([ready(1), strange.event, ready(2)])
    await consume(database, log, record, 3)
    assert await numbers(database) == [1, 2]
    await Relay(database, log, name="tests").stop()
    (dead,) = await waiting_dead_letters(log, "tests")
    assert dead.event.extensions["lepton_dead_reason"] == "the message lacks the header 'ce_id'"
    assert dead.event.data == b"?"


async def test_what_is_no_event_takes_nothing_with_it(tmp_path: Path) -> None:
    log = open_event_log(EventLogSettings(url=f"sqlite://{tmp_path}/events.db"))
    await log.start()
    await log.publish([ready(1), ready(2), ready(3)])
    with sqlite3.connect(tmp_path / "events.db") as connection:
        connection.execute("UPDATE log SET headers = '{}' WHERE position = 2")
    received = await log.subscribe("g", ["lepton.data.dataset.v1"]).poll(10, 1)
    assert [r.event.type.rsplit(".", 1)[-1] for r in received] == ["DatasetVersionReady", "unreadable", "DatasetVersionReady"]
    with pytest.raises(Poison, match="ce_id"):
        received[1].event.message()
    await log.stop()


async def test_a_replay_that_died_before_its_commit_has_one_effect(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    log = InMemoryEventLog()
    await log.publish([dead_letter("tests", Received(ready(1), 0, 0), Poison("it was too early"))])
    with monkeypatch.context() as patch:

        async def dies(*_: object) -> None:
            raise Transient("away")

        patch.setattr(InMemorySubscription, "commit", dies)
        with pytest.raises(Transient):
            await replay_dead_letters(log, "tests")
    assert await replay_dead_letters(log, "tests") == 1
    assert [e.topic for e in log.events].count(retry_topic("tests")) == 2
    await consume(database, log, record, 3)
    assert await numbers(database) == [1]


async def test_a_consumer_tells_how_far_it_is_behind(database: Database) -> None:
    log = InMemoryEventLog()
    consumer = Consumer("tests", database, log, handles((DatasetVersionReady, record)))
    await log.publish([ready(1), ready(2)])
    assert await consumer.lag() == 2
    await consume(database, log, record, 2)
    assert await consumer.lag() == 0
