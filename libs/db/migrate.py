"""Brings a service's database to the schema its code expects.

Migrations are files `NNNN_words.py` in the folder `migrations`, whose revision is NNNN. Alembic, which takes a quarter of a second
to import, is only loaded where one has to run.
"""

from importlib.resources import files

from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.db.database import Database


async def migrate(database: Database, package: str) -> None:
    """Runs the migrations in `package`.migrations that the database has not seen, in one transaction."""
    newest = max(path.name[:4] for path in (files(package) / "migrations").iterdir() if path.name[:4].isdigit())
    async with database.read() as session:
        if await _revision(session) == newest:
            return
    from libs.db.upgrade import upgrade

    async with database.unit() as unit:
        connection = await unit.session.connection()
        await connection.run_sync(upgrade, package)


async def _revision(session: AsyncSession) -> str | None:
    """What the database was last brought to; None for a new one."""
    connection = await session.connection()
    if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
        return None
    return (await session.execute(text("SELECT version_num FROM alembic_version"))).scalar()
