"""Rolling updates: code of the release before works on the new schema, and old code starts on a database that is newer than it knows."""

from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Connection, text

from libs.db import Database, DatabaseSettings, migrate
from libs.db.upgrade import upgrade
from libs.errors import Transient
from tests.postgres import connected, new_database, settings_of

SERVICES = ["accounts", "data", "compute", "training", "deployment", "marketplace"]


def revisions(service: str) -> list[str]:
    return sorted(path.name[:4] for path in (files(f"services.{service}") / "migrations").iterdir() if path.name[:4].isdigit())


STEPS = [(service, before) for service in SERVICES for before in revisions(service)[:-1]]


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> URL | None:
    return request.getfixturevalue("postgres") if request.param == "postgres" else None


@pytest.fixture
async def database(server: URL | None, tmp_path: Path) -> AsyncIterator[Database]:
    if server is None:
        database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{tmp_path}/test.db"))
        yield database
        await database.stop()
        return
    async with new_database(server) as url:
        database = Database(settings_of(url))
        yield database
        await database.stop()


def test_there_are_steps_to_test() -> None:
    assert ("accounts", "0001") in STEPS and ("marketplace", "0001") in STEPS


@pytest.mark.parametrize(("service", "before"), STEPS)
async def test_rows_as_the_code_before_writes_them_are_taken(database: Database, service: str, before: str) -> None:
    async with database.migration() as connection:
        await connection.run_sync(upgrade, f"services.{service}", before)
        known = await connection.run_sync(_tables)
        for table in known.sorted_tables:
            await connection.execute(table.insert().values(_row(table, 1)))
    await migrate(database, f"services.{service}")
    async with database.unit() as unit:
        for table in known.sorted_tables:
            await unit.session.execute(table.insert().values(_row(table, 2)))
            key = list(table.primary_key.columns)
            assert len((await unit.session.execute(table.select().where(key[0] == _row(table, 2)[key[0].name]))).all()) == 1


def _tables(connection: Connection) -> sa.MetaData:
    """What the code of then knows: every table with its columns."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    metadata.remove(metadata.tables["alembic_version"])
    return metadata


def _row(table: sa.Table, number: int) -> dict[str, Any]:
    return {column.name: _value(column.type, number) for column in table.columns}


def _value(kind: Any, number: int) -> Any:
    if isinstance(kind, sa.JSON):
        return {"number": number}
    if isinstance(kind, sa.Boolean):
        return True
    python = kind.python_type
    return python(number) if python in (int, float) else str(number).encode() if python is bytes else str(number)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_newer_database_is_left_as_it_is(database: Database, service: str) -> None:
    await migrate(database, f"services.{service}")
    async with database.unit() as unit:
        await unit.session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await migrate(database, f"services.{service}")
    async with database.read() as session:
        assert (await session.execute(text("SELECT version_num FROM alembic_version"))).scalar() == "9999"


async def test_a_migration_that_is_killed_leaves_nothing(postgres: URL) -> None:
    async with new_database(postgres) as url:
        database = Database(settings_of(url))
        with pytest.raises(Transient):
            async with database.migration() as connection:
                await connection.run_sync(upgrade, "services.accounts")
                admin = await connected(postgres)
                await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", url.database)
                await admin.close()
        left = await connected(url)
        assert await left.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        await left.close()
        await migrate(database, "services.accounts")
        await database.stop()
