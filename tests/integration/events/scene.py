"""A database whose handler writes down what it was given, and events for it."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import insert, select

from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseSettings, Unit
from libs.db.infrastructure import metadata as infrastructure
from libs.events import Consumer, Event, EventLog, EventLogSettings, handles, open_event_log

tables = sa.MetaData()
effects = sa.Table(
    "effects",
    tables,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("key", sa.Integer),
    sa.Column("number", sa.Integer),
    sa.Column("process", sa.Integer),
)


@asynccontextmanager
async def database_in(folder: Path) -> AsyncIterator[Database]:
    """Of a file, so that several processes may have it."""
    database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/effects.db"))
    async with database.migration() as connection:
        await connection.run_sync(infrastructure.create_all)
        await connection.run_sync(tables.create_all)
    try:
        yield database
    finally:
        await database.stop()


@asynccontextmanager
async def event_log(settings: EventLogSettings | str) -> AsyncIterator[EventLog]:
    """A log as a process of its own has it."""
    log = open_event_log(EventLogSettings(url=settings) if isinstance(settings, str) else settings)
    try:
        await log.start()
        yield log
    finally:
        await log.stop()


def ready(own: str, number: int, keys: int = 20) -> Event:
    """The topic is one for all tests, so `own` says whose event it is."""
    return Event.of(DatasetVersionReady(version=DatasetVersion(dataset=own, number=number)), key=f"{own}/{number % keys}")


def consumer_of(own: str, database: Database, log: EventLog, *, seconds: float = 0.0) -> Consumer:
    """Writes down the events of `own`, and takes `seconds` for each."""

    async def record(unit: Unit, message: DatasetVersionReady) -> None:
        if message.version.dataset == own:
            number = message.version.number
            await unit.session.execute(insert(effects).values(key=number % 20, number=number, process=os.getpid()))
            await asyncio.sleep(seconds)

    return Consumer(own, database, log, handles((DatasetVersionReady, record)))


async def seen(database: Database) -> list[Any]:
    async with database.read() as session:
        return list((await session.execute(select(effects).order_by(effects.c.position))).all())


async def all_seen(database: Database, count: int, timeout: float = 60.0) -> None:
    """Each of `count` events has its effect, in the order of its key, and none has two."""
    await until(lambda: _reached(database, count), timeout)
    rows = await seen(database)
    assert [number for number, times in Counter(row.number for row in rows).items() if times > 1] == []
    assert sorted(row.number for row in rows) == list(range(count))
    for key in {row.key for row in rows}:
        numbers = [row.number for row in rows if row.key == key]
        assert numbers == sorted(numbers)


async def _reached(database: Database, count: int) -> bool:
    return len(await seen(database)) >= count


async def until(check: Callable[[], Awaitable[bool]], timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not await check():  # noqa: ASYNC110 (what is checked is in another process)
            await asyncio.sleep(0.05)
