"""Brings a service's database to the schema its code expects.

Migrations are files `NNNN_words.py` in the folder `migrations`, whose revision is NNNN. Alembic, which takes a quarter of a second
to import, is only loaded where one has to run.
"""

from importlib.resources import files

import structlog
from sqlalchemy import Connection, inspect, text

from libs.db.database import Database

log = structlog.get_logger()


async def migrate(database: Database, package: str) -> None:
    """Runs the migrations in `package`.migrations that the database has not seen, in one transaction and once, whoever else starts.

    A newer database is left as it is: the code of the release before works on it.
    """
    newest = max(path.name[:4] for path in (files(package) / "migrations").iterdir() if path.name[:4].isdigit())
    async with database.read() as session:
        if _is_there(await (await session.connection()).run_sync(_revision), newest):
            return
    from libs.db.upgrade import upgrade

    async with database.migration() as connection:
        # Another replica may have been faster.
        if not _is_there(await connection.run_sync(_revision), newest):
            await connection.run_sync(upgrade, package)


def _is_there(revision: str, newest: str) -> bool:
    if revision > newest:
        log.warning("database_is_newer", revision=revision, known=newest)
    return revision >= newest


def _revision(connection: Connection) -> str:
    """What the database was last brought to; empty for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
