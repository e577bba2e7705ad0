"""Brings a service's database to the schema its code expects, or waits until somebody else has.

Migrations are files `NNNN_words.py` in the folder `migrations`, whose revision is NNNN. Alembic, which takes a quarter of a second
to import, is only loaded where one has to run.
"""

import asyncio
import time
from importlib.resources import files

import structlog
from sqlalchemy import Connection, inspect, text

from libs.db.database import Database
from libs.errors import Transient

log = structlog.get_logger()

AWAIT_SECONDS = 0.5


async def migrate(database: Database, package: str) -> None:
    """Runs the migrations in `package`.migrations that the database has not seen, in one transaction and once, whoever else starts.

    A newer database is left as it is: the code of the release before works on it.
    """
    newest = _newest(package)
    if _is_there(await _read_revision(database), newest):
        return
    from libs.db.upgrade import upgrade

    async with database.migration() as connection:
        # Another replica may have been faster.
        if not _is_there(await connection.run_sync(_revision), newest):
            await connection.run_sync(upgrade, package)


async def await_schema(database: Database, package: str) -> None:
    """Returns once the database is no older than the migrations in `package`.migrations; changes nothing itself.

    Raises Transient when it is still older after the `start_seconds` of its settings.
    """
    newest, end = _newest(package), time.monotonic() + database.settings.start_seconds
    while not _is_there(revision := await _read_revision(database), newest):
        if time.monotonic() >= end:
            raise Transient(
                f"the schema of {package} is {revision or 'not there'}, and this code needs {newest}: "
                f"`python -m {package}.main migrate` brings it there"
            )
        log.info("schema_awaited", revision=revision, needed=newest)
        await asyncio.sleep(AWAIT_SECONDS)


def _newest(package: str) -> str:
    return max(path.name[:4] for path in (files(package) / "migrations").iterdir() if path.name[:4].isdigit())


def _is_there(revision: str, newest: str) -> bool:
    if revision > newest:
        log.warning("database_is_newer", revision=revision, known=newest)
    return revision >= newest


async def _read_revision(database: Database) -> str:
    async with database.read() as session:
        return await (await session.connection()).run_sync(_revision)


def _revision(connection: Connection) -> str:
    """What the database was last brought to; empty for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
