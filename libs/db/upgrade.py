"""Alembic without an ini file or an env.py: a package's migrations on a connection that is already in a transaction."""

from importlib.resources import files
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(connection: Connection, package: str, revision: str = "head") -> None:
    """Runs what the database has not seen, up to `revision`."""
    folder = str(files(package) / "migrations")
    config = Config()
    config.set_main_option("script_location", folder)
    config.set_main_option("version_locations", folder)
    config.set_main_option("path_separator", "newline")
    script = ScriptDirectory.from_config(config)

    def steps(now: Any, _context: Any) -> Any:
        return script._upgrade_revs(revision, now)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(connection=connection, render_as_batch=True, transactional_ddl=False)
        environment.run_migrations()
