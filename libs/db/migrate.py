"""Brings a service's database to the schema its code expects: Alembic without an ini file or an env.py."""

import asyncio
from importlib.resources import files
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from libs.db.database import Database


async def migrate(database: Database, package: str) -> None:
    """Runs the migrations in `package`.migrations (files `NNNN_words.py`) that the database has not seen, in one transaction."""
    script = await asyncio.to_thread(_scripts, package)
    async with database.unit() as unit:
        connection = await unit.session.connection()
        await connection.run_sync(_upgrade, script)


def _scripts(package: str) -> ScriptDirectory:
    folder = str(files(package) / "migrations")
    config = Config()
    config.set_main_option("script_location", folder)
    config.set_main_option("version_locations", folder)
    config.set_main_option("path_separator", "newline")
    return ScriptDirectory.from_config(config)


def _upgrade(connection: Connection, script: ScriptDirectory) -> None:
    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, render_as_batch=True, transactional_ddl=False)
        environment.run_migrations()
