"""A PostgreSQL server for tests, and new databases on it."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import URL, make_url

from libs.db import DatabaseSettings
from tests.backends import container, until

ENVIRONMENT = {"POSTGRES_PASSWORD": "only-for-tests"}


def url_at(address: str) -> URL:
    """Of the container's administrator."""
    return make_url(f"postgresql+asyncpg://postgres:{ENVIRONMENT['POSTGRES_PASSWORD']}@{address}/postgres")


def wait_until_it_answers(url: URL) -> None:
    until(lambda: asyncio.run(run(url, "SELECT 1")) is None, "PostgreSQL", 120)


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A server, as its administrator: in a container, or the one that LEPTON_TEST_DATABASE names."""
    if given := os.environ.get("LEPTON_TEST_DATABASE"):
        yield make_url(given)
        return
    # It need not outlive the tests: what it makes is not synced.
    with container("postgres", 5432, ENVIRONMENT, ["postgres", "-c", "fsync=off", "-c", "max_connections=300"]) as (_, address):
        wait_until_it_answers(url_at(address))
        yield url_at(address)


async def connected(url: URL) -> Any:
    """The driver's own connection."""
    options = {"host": url.host, "port": url.port, "user": url.username, "password": url.password, "database": url.database}
    return await asyncpg.connect(**options, timeout=10)


async def run(url: URL, *statements: str) -> None:
    connection = await connected(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def settings_of(url: URL, **others: Any) -> DatabaseSettings:
    """The password apart, as services have it."""
    plain = URL.create(url.drivername, url.username, host=url.host, port=url.port, database=url.database)
    return DatabaseSettings(url=plain.render_as_string(), password=SecretStr(url.password or ""), **others)


@asynccontextmanager
async def new_database(server: URL) -> AsyncIterator[URL]:
    """An empty one, dropped afterwards."""
    name = f"test_{secrets.token_hex(8)}"
    await run(server, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        yield server.set(database=name)
    finally:
        await run(server, f"DROP DATABASE {name} WITH (FORCE)")
