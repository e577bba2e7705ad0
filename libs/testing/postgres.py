"""Databases of tests on the PostgreSQL server that LEPTON_TEST_DATABASE names, as a role that may make databases.

Migrations run once a package and process, into a template; a test's database is a copy of it. Templates, and what stands for a file,
stay until tests run an hour later: nothing ends for sure before its process does.
"""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]
from pydantic import SecretStr
from sqlalchemy import URL, make_url

from libs.db import Database, DatabaseSettings, migrate

_PREFIX = f"test_{os.getpid()}"
_OLD = """
SELECT datname FROM pg_database
WHERE datname LIKE 'test\\_%' AND (pg_stat_file('base/' || oid || '/PG_VERSION')).modification < now() - interval '1 hour'
"""
_made: set[str] = set()


def server() -> URL | None:
    """ "postgresql+asyncpg://role:password@host:port/database"; None where tests use SQLite."""
    url = os.environ.get("LEPTON_TEST_DATABASE", "")
    return make_url(url) if url else None


@asynccontextmanager
async def copied_database(package: str, url: str) -> AsyncIterator[DatabaseSettings]:
    """A migrated database of the service; what SQLite would keep in a file is found again under the same `url`, by other processes too."""
    kept = bool(make_url(url).database)
    name = name_of(url) if kept else f"{_PREFIX}_{secrets.token_hex(8)}"
    template = f"{_PREFIX}_{package}"
    if template not in _made:
        await _forget_old()
        await empty_database(template)
        database = Database(settings_of(template))
        await migrate(database, package)
        await database.stop()
    await _create(name, f'TEMPLATE "{template}"')
    try:
        yield settings_of(name)
    finally:
        if not kept:
            await _drop(name)


async def empty_database(name: str) -> DatabaseSettings:
    """Text in it sorts by its bytes, as in SQLite."""
    await _create(name, "TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")
    return settings_of(name)


async def _create(name: str, how: str) -> None:
    """Leaves one that is there; who makes it drops it."""
    try:
        await _run(f'CREATE DATABASE "{name}" {how}')
    except asyncpg.DuplicateDatabaseError:
        return
    _made.add(name)


def settings_of(name: str) -> DatabaseSettings:
    """Of a database on the server."""
    url = server()
    assert url, "LEPTON_TEST_DATABASE is not set"
    plain = URL.create(url.drivername, username=url.username, host=url.host, port=url.port, database=name)
    return DatabaseSettings(url=plain.render_as_string(), password=SecretStr(url.password or ""), pool_size=4)


async def _run(statement: str) -> list[str]:
    url = server()
    assert url, "LEPTON_TEST_DATABASE is not set"
    connection = await asyncpg.connect(host=url.host, port=url.port, user=url.username, password=url.password, database=url.database)
    try:
        return [row[0] for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def _drop(name: str) -> None:
    await _run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    _made.discard(name)


async def _forget_old() -> None:
    for name in await _run(_OLD):
        await _drop(name)


def name_of(url: str) -> str:
    """The same in every process."""
    return f"test_{hashlib.sha256(url.encode()).hexdigest()[:24]}"
