"""Units commit whole or not at all, remember what they answered, and wait for each other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select

from lepton.data.v1.dataset_pb2 import Dataset
from libs.db import Database, DatabaseSettings, RequestKey, page_token, start_after
from libs.db.infrastructure import metadata as infrastructure
from libs.errors import Conflict, Invalid, Replay

tables = sa.MetaData()
things = sa.Table("things", tables, sa.Column("name", sa.String, primary_key=True))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{tmp_path}/deep/test.db"))
    async with database.engine.begin() as connection:
        await connection.run_sync(infrastructure.create_all)
        await connection.run_sync(tables.create_all)
    yield database
    await database.stop()


async def names(database: Database) -> list[str]:
    async with database.read() as session:
        return list((await session.execute(select(things.c.name))).scalars())


def request(name: str, key: str = "k1") -> RequestKey:
    return RequestKey("acme", "CreateDataset", key, Dataset(name=name))


async def test_the_same_request_is_answered_once(database: Database) -> None:
    async with database.unit(request("a")) as unit:
        await unit.session.execute(insert(things).values(name="a"))
        await unit.reply(Dataset(name="a", workspace="acme"))
    with pytest.raises(Replay) as replay:
        async with database.unit(request("a")):
            pytest.fail("must not be reached")
    assert Dataset.FromString(replay.value.response).workspace == "acme"
    assert await names(database) == ["a"]


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


async def test_writers_wait_for_each_other_and_readers_do_not(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.unit() as unit:
            await unit.session.execute(insert(things).values(name=f"{number:03}"))
            await asyncio.sleep(0.001)

    async with database.unit() as unit:
        await unit.session.execute(insert(things).values(name="uncommitted"))
        assert await names(database) == []
    await asyncio.gather(*(write(n) for n in range(50)))
    assert len(await names(database)) == 51


async def test_two_processes_may_write(database: Database) -> None:
    other = Database(database.settings)

    async def write(target: Database, name: str) -> None:
        async with target.unit() as unit:
            await unit.session.execute(insert(things).values(name=name))

    await asyncio.gather(*(write(d, f"{i}{n}") for n in range(20) for i, d in enumerate((database, other))))
    assert len(await names(database)) == 40
    await other.stop()


def test_page_tokens() -> None:
    assert start_after("") is None
    assert start_after(page_token("job-0001")) == "job-0001"
    with pytest.raises(Invalid):
        start_after("\x00\udc80"[:1] + "é")
