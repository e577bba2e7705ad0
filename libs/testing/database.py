"""A service's database as its migrations make it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData

from libs.db import Database, DatabaseSettings, migrate
from libs.db.infrastructure import metadata as infrastructure
from libs.testing.postgres import copied_database, empty_database, name_of, server


@asynccontextmanager
async def migrated_database(package: str, url: str = "sqlite+aiosqlite://") -> AsyncIterator[Database]:
    """A database of the service in `package` ("services.data"), in memory unless `url` says otherwise.

    With LEPTON_TEST_DATABASE in the environment it is one on that PostgreSQL server.
    """
    async with AsyncExitStack() as stack:
        settings = DatabaseSettings(url=url)
        if server():
            settings = await stack.enter_async_context(copied_database(package, url))
        database = Database(settings)
        stack.push_async_callback(database.stop)
        await migrate(database, package)
        yield database


async def database_settings(url: str) -> DatabaseSettings:
    """For a service that is started whole and migrates for itself: `url`, or a new database on the server of LEPTON_TEST_DATABASE."""
    return await empty_database(name_of(url)) if server() else DatabaseSettings(url=url)


def database_environment(prefix: str, settings: DatabaseSettings) -> dict[str, str]:
    """For its other processes; `prefix` is the service's ("LEPTON_DATA_")."""
    return {f"{prefix}DATABASE__URL": settings.url, f"{prefix}DATABASE__PASSWORD": settings.password.get_secret_value()}


async def schema_differences(package: str, tables: MetaData) -> list[Any]:
    """What the migrations make otherwise than `tables` and the infrastructure say; empty where they agree."""
    async with migrated_database(package) as database, database.engine.connect() as connection:
        return await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), [tables, infrastructure])  # type: ignore[arg-type]
        )
