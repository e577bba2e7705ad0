"""A full disk is no event's fault: a consumer waits for room, and neither buries what it cannot write nor ends."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseSettings, Unit
from libs.db.infrastructure import metadata
from libs.errors import AppError, Poison
from libs.events import Consumer, Event, InMemoryEventLog, handles, waiting_dead_letters
from libs.events import consumer as module


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    database = Database(DatabaseSettings())
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.stop()


def ready(number: int) -> Event:
    return Event.of(DatasetVersionReady(version=DatasetVersion(number=number)), key="acme/iris")


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110 (what is checked is nobody's event)
            await asyncio.sleep(0.01)


async def test_an_event_waits_for_room(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    log, tries, seen = InMemoryEventLog(), 0, []

    async def cramped(unit: Unit, message: DatasetVersionReady) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise AppError("the disk is full", code="storage_full")
        seen.append(message.version.number)

    await log.publish([ready(1), ready(2)])
    consumer = Consumer("tests", database, log, handles((DatasetVersionReady, cramped)))
    await consumer.start()
    await until(lambda: seen == [1, 2])
    await consumer.stop()
    assert await waiting_dead_letters(log, "tests") == []


async def test_a_dead_letter_that_cannot_be_written_ends_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    log, seen, buried = InMemoryEventLog(), [], 0
    bury = Consumer._bury

    async def cramped(self: Consumer, *arguments: object) -> bool:
        nonlocal buried
        buried += 1
        if buried < 3:
            raise AppError("the disk is full", code="storage_full")
        return await bury(self, *arguments)  # type: ignore[arg-type]

    async def picky(unit: Unit, message: DatasetVersionReady) -> None:
        if message.version.number == 1:
            raise Poison("one is not a number")
        seen.append(message.version.number)

    monkeypatch.setattr(Consumer, "_bury", cramped)
    await log.publish([ready(1), ready(2)])
    consumer = Consumer("tests", database, log, handles((DatasetVersionReady, picky)))
    await consumer.start()
    await until(lambda: seen == [2])
    await consumer.stop()
    assert buried == 3
