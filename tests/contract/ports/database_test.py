"""What every database does: units whole and one after another, answers remembered, events in the order of commits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.orm
from sqlalchemy import URL, insert, select, update

from lepton.data.v1.dataset_pb2 import Dataset, DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseSettings, RequestKey
from libs.db.infrastructure import metadata as infrastructure
from libs.db.infrastructure import outbox
from libs.errors import Conflict, Invalid, Replay
from libs.events import Event
from tests.postgres import new_database, postgres, settings_of

__all__ = ["postgres"]

Open = Callable[[], Database]

tables = sa.MetaData()
things = sa.Table("things", tables, sa.Column("name", sa.String, primary_key=True))
counters = sa.Table("counters", tables, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.Integer, nullable=False))


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> URL | None:
    return request.getfixturevalue("postgres") if request.param == "postgres" else None


@pytest.fixture
async def settings(server: URL | None, tmp_path: Path) -> AsyncIterator[DatabaseSettings]:
    if server is None:
        yield DatabaseSettings(url=f"sqlite+aiosqlite:///{tmp_path}/deep/test.db", pool_size=2)
        return
    async with new_database(server) as url:
        yield settings_of(url, pool_size=2)


@pytest.fixture
async def open_another(settings: DatabaseSettings) -> AsyncIterator[Open]:
    """Another process's, as far as the database can tell."""
    opened: list[Database] = []

    def open_one() -> Database:
        opened.append(Database(settings))
        return opened[-1]

    first = open_one()
    await first.start()
    async with first.migration() as connection:
        await connection.run_sync(infrastructure.create_all)
        await connection.run_sync(tables.create_all)
    yield open_one
    for database in opened:
        await database.stop()


@pytest.fixture
def database(open_another: Open) -> Database:
    return open_another()


async def names(database: Database) -> list[str]:
    async with database.read() as session:
        return list((await session.execute(select(things.c.name).order_by(things.c.name))).scalars())


async def add(database: Database, name: str) -> None:
    async with database.unit() as unit:
        await unit.session.execute(insert(things).values(name=name))


def request(name: str, key: str = "k1") -> RequestKey:
    return RequestKey("acme", "CreateDataset", key, Dataset(name=name))


def event(number: int) -> Event:
    return Event.of(DatasetVersionReady(version=DatasetVersion(number=number)), key="acme/iris")


async def test_the_same_request_is_answered_once(database: Database) -> None:
    async with database.unit(request("a")) as unit:
        await unit.session.execute(insert(things).values(name="a"))
        await unit.reply(Dataset(name="a", workspace="acme"))
    with pytest.raises(Replay) as replay:
        async with database.unit(request("a")):
            pytest.fail("must not be reached")
    assert Dataset.FromString(replay.value.response).workspace == "acme"
    assert await names(database) == ["a"]


async def test_the_same_request_at_the_same_time_is_answered_once(open_another: Open) -> None:
    async def ask(database: Database) -> str:
        try:
            async with database.unit(request("a")) as unit:
                await unit.session.execute(insert(things).values(name="a"))
                await unit.reply(Dataset(name="a"))
                return "made"
        except Replay:
            return "replayed"

    databases = [open_another() for _ in range(4)]
    answers = await asyncio.gather(*(ask(database) for database in databases for _ in range(3)))
    assert sorted(answers) == ["made"] + ["replayed"] * 11


async def test_a_key_belongs_to_one_request(database: Database) -> None:
    async with database.unit(request("a")) as unit:
        await unit.reply(Dataset(name="a"))
    with pytest.raises(Invalid) as refused:
        async with database.unit(request("b")):
            pass
    assert refused.value.code == "idempotency_key_reused"


async def test_errors_are_answered_again_too(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(Conflict, match="taken"):
            async with database.unit(request("a")):
                raise Conflict("the name is taken", code="name_taken")
    async with database.unit(request("a", key="k2")) as unit:
        await unit.reply(Dataset())


async def test_a_unit_that_raises_leaves_nothing(database: Database) -> None:
    heard: list[str] = []
    database.on_emit(lambda: heard.append("emitted"))
    with pytest.raises(RuntimeError):
        async with database.unit() as unit:
            unit.after_commit(lambda: heard.append("committed"))
            await unit.session.execute(insert(things).values(name="a"))
            await unit.emit(event(1))
            raise RuntimeError
    assert (await names(database), heard) == ([], [])
    async with database.unit() as unit:
        unit.after_commit(lambda: heard.append("committed"))
        await unit.emit(event(1))
    assert heard == ["committed", "emitted"]


async def test_what_contradicts_a_row_is_a_conflict_and_leaves_nothing(database: Database) -> None:
    class Base(sa.orm.DeclarativeBase):
        metadata = tables

    class Thing(Base):
        __table__ = things

    await add(database, "a")
    with pytest.raises(Conflict, match="there is an a"):
        async with database.unit() as unit:
            await unit.session.execute(insert(things).values(name="b"))
            await unit.insert(Thing(name="a"), taken=Conflict("there is an a"))
    assert await names(database) == ["a"]


async def test_writers_wait_for_each_other_and_readers_for_nobody(database: Database) -> None:
    """However many wait to write, and with a pool of two connections."""
    async with database.unit() as unit:
        await unit.session.execute(insert(things).values(name="uncommitted"))
        waiting = [asyncio.create_task(add(database, f"{number:03}")) for number in range(50)]
        for _ in range(20):
            assert await asyncio.wait_for(names(database), 5) == []
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    assert len(await names(database)) == 51


async def test_nothing_is_lost_between_reading_and_writing(open_another: Open) -> None:
    databases = [open_another(), open_another()]
    async with databases[0].unit() as unit:
        await unit.session.execute(insert(counters).values(name="a", value=0))

    async def increment(database: Database) -> None:
        async with database.unit() as unit:
            value = (await unit.session.execute(select(counters.c.value))).scalar_one()
            await asyncio.sleep(0.002)
            await unit.session.execute(update(counters).values(value=value + 1))

    await asyncio.gather(*(increment(databases[number % 2]) for number in range(20)))
    async with databases[0].read() as session:
        assert (await session.execute(select(counters.c.value))).scalar_one() == 20


async def test_what_is_not_there_is_made_once(open_another: Open) -> None:
    """Read, then insert, as inbox and reservations do."""
    databases = [open_another() for _ in range(3)]

    async def ensure(database: Database) -> bool:
        async with database.unit() as unit:
            if (await unit.session.execute(select(things))).first():
                return False
            await asyncio.sleep(0.002)
            await unit.session.execute(insert(things).values(name="a"))
            return True

    assert sum(await asyncio.gather(*(ensure(database) for database in databases for _ in range(5)))) == 1


async def test_a_read_sees_one_state(open_another: Open) -> None:
    database, other = open_another(), open_another()
    async with database.read() as session:
        before = (await session.execute(select(things))).all()
        await add(other, "a")
        assert (await session.execute(select(things))).all() == before == []
    assert await names(database) == ["a"]


async def test_events_lie_in_the_order_of_commits(open_another: Open) -> None:
    """Whoever reads the outbox up to a position has missed nothing before it."""
    writers, reader = [open_another() for _ in range(3)], open_another()
    seen: list[int] = []

    async def emit(database: Database, number: int) -> None:
        async with database.unit() as unit:
            await unit.emit(event(number), event(number))
            await asyncio.sleep(0.001)

    async def look() -> None:
        async with reader.read() as session:
            query = select(outbox.c.position).where(outbox.c.position > max(seen, default=0)).order_by(outbox.c.position)
            seen.extend((await session.execute(query)).scalars())

    emitting = asyncio.gather(*(emit(database, number) for number in range(20) for database in writers))
    while not emitting.done():
        await look()
        await asyncio.sleep(0)
    await emitting
    await look()
    assert len(seen) == 120


async def test_a_cancelled_unit_leaves_nothing_and_keeps_nobody_waiting(database: Database) -> None:
    holding = asyncio.Event()

    async def hold() -> None:
        async with database.unit() as unit:
            await unit.session.execute(insert(things).values(name="cancelled"))
            holding.set()
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    await holding.wait()
    waiter = asyncio.create_task(add(database, "never"))
    await asyncio.sleep(0.01)
    for task in (waiter, holder):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.wait_for(add(database, "a"), 5)
    assert await names(database) == ["a"]


async def test_what_is_stored_comes_back(database: Database) -> None:
    headers = {"é": "\u0416 🎉", "quote": "'\"\\"}
    data = bytes(range(256))
    async with database.unit() as unit:
        await unit.session.execute(insert(outbox).values(topic="t", key="k", headers=headers, data=data))
    async with database.read() as session:
        row = (await session.execute(select(outbox))).one()
    assert (row.headers, row.data) == (headers, data)


async def test_names_are_in_the_order_of_their_bytes(database: Database) -> None:
    given = ["B", "a", "Z", "a-b", "a_b", "ab", "é", "10", "9", "_"]
    for name in given:
        await add(database, name)
    assert await names(database) == sorted(given)
