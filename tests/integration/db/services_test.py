"""Each service on a database and role of its own, as deploy/postgres/init.sh makes them: migrated once, closed to the others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import URL, text

from libs.db import Database, migrate
from libs.errors import Transient
from tests.backends import container
from tests.postgres import ENVIRONMENT, connected, settings_of, url_at, wait_until_it_answers

SERVICES = ["accounts", "data", "compute", "training", "deployment", "marketplace"]
INIT = Path(__file__).parents[3] / "deploy" / "postgres" / "init.sh"


def password(service: str) -> str:
    return f"of '{service}' \"$HOME\" \\"


@pytest.fixture(scope="module")
def server() -> Iterator[URL]:
    """Its databases made by the script, which runs twice: a second time changes nothing."""
    passwords = {f"LEPTON_{service.upper()}_DATABASE__PASSWORD": password(service) for service in SERVICES}
    with container("postgres", 5432, ENVIRONMENT | passwords) as (docker, address):
        wait_until_it_answers(url_at(address))
        for _ in range(2):
            code, said = docker.get_wrapped_container().exec_run(["bash", "-c", INIT.read_text()], environment={"PGUSER": "postgres"})
            assert (code, said) == (0, b"")
        for stream in docker.get_logs():
            assert b"$HOME" not in stream
        yield url_at(address)


def url_of(server: URL, service: str, database: str = "") -> URL:
    return server.set(username=f"lepton_{service}", password=password(service), database=database or f"lepton_{service}")


@pytest.mark.parametrize("service", SERVICES)
async def test_replicas_that_start_together_migrate_once(server: URL, service: str) -> None:
    replicas = [Database(settings_of(url_of(server, service))) for _ in range(4)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    await asyncio.gather(*(migrate(replica, f"services.{service}") for replica in replicas))
    async with replicas[0].read() as session:
        assert len((await session.execute(text("SELECT version_num FROM alembic_version"))).all()) == 1
    async with replicas[0].unit() as unit:
        await unit.session.execute(text("DELETE FROM inbox"))
    for replica in replicas:
        await replica.stop()


@pytest.mark.parametrize("service", SERVICES)
async def test_a_role_reaches_its_own_database_only(server: URL, service: str) -> None:
    for other in SERVICES:
        if other != service:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
                await connected(url_of(server, service, f"lepton_{other}"))
    connection = await connected(url_of(server, service))
    for statement in ("CREATE ROLE another", "CREATE DATABASE another", "ALTER ROLE lepton_data SUPERUSER"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    assert await connection.fetchval("SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C"
    await connection.close()


async def test_a_wrong_password_is_said_in_words_without_it(server: URL) -> None:
    wrong = Database(settings_of(url_of(server, "data").set(password="not-the-password"), start_seconds=0))
    with pytest.raises(Transient, match="refuses role lepton_data on database lepton_data: password authentication failed") as refused:
        await wrong.start()
    assert "not-the-password" not in str(refused.value)


async def test_a_database_that_comes_late_is_waited_for(server: URL) -> None:
    admin = await connected(server)
    late = Database(settings_of(server.set(database="late"), start_seconds=30))
    starting = asyncio.create_task(late.start())
    await asyncio.sleep(1.5)
    assert not starting.done()
    await admin.execute("CREATE DATABASE late")
    await starting
    await late.stop()
    await admin.close()
