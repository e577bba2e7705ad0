"""The command `migrate` on a database in a file, and a service that waits for it."""

import asyncio
import sys
from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict
from sqlalchemy import text

from libs.db import Database, DatabaseSettings, await_schema
from libs.errors import Transient
from libs.lifecycle import Component
from libs.rpc import IdentitySettings, generate_key
from libs.service import Kit, ServiceSettings, command

FIRST = """
from alembic import op
revision, down_revision = "0001", None
def upgrade():
    op.execute("CREATE TABLE things (id INTEGER)")
"""
SECOND = """
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.execute("ALTER TABLE things ADD COLUMN name TEXT")
"""


class ShopSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="LEPTON_SHOP_")


def _build(_settings: ShopSettings) -> Component:
    raise AssertionError("nothing is served here")


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of a service in the package `shop`."""
    folder = tmp_path / "shop" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    (folder / "0001_first.py").write_text(FIRST)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> ShopSettings:
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    identity = IdentitySettings(private_key=generate_key()[0])
    return ShopSettings(database=DatabaseSettings(url=url, start_seconds=0), identity=identity, migrate_on_start=False)


def run(monkeypatch: pytest.MonkeyPatch, settings: ShopSettings, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["shop", *words])
    command("shop", "shop", settings, _build, worker=_build)


async def _columns(settings: ShopSettings) -> list[str]:
    database = Database(settings.database)
    async with database.read() as session:
        found = [row[1] for row in await session.execute(text("PRAGMA table_info(things)"))]
    await database.stop()
    return found


def test_migrate_brings_the_database_up_to_date_and_ends(monkeypatch: pytest.MonkeyPatch, settings: ShopSettings, migrations: Path) -> None:
    run(monkeypatch, settings, "migrate")
    assert asyncio.run(_columns(settings)) == ["id"]
    (migrations / "0002_second.py").write_text(SECOND)
    run(monkeypatch, settings, "migrate")
    run(monkeypatch, settings, "migrate")
    assert asyncio.run(_columns(settings)) == ["id", "name"]


@pytest.mark.usefixtures("migrations")
def test_a_database_that_is_not_there_is_said_in_words(monkeypatch: pytest.MonkeyPatch, settings: ShopSettings) -> None:
    away = settings.model_copy(update={"database": DatabaseSettings(url="postgresql+asyncpg://role@127.0.0.1:1/db", start_seconds=0)})
    with pytest.raises(SystemExit, match=r"shop is not migrated: .*cannot be reached"):
        run(monkeypatch, away, "migrate")


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch, settings: ShopSettings) -> None:
    with pytest.raises(SystemExit, match="no command wroker; it has migrate, worker"):
        run(monkeypatch, settings, "wroker")


async def test_a_service_that_does_not_migrate_refuses_an_older_schema(settings: ShopSettings, migrations: Path) -> None:
    with pytest.raises(Transient, match=r"is not there, and this code needs 0001: `python -m shop.main migrate`"):
        await Kit("shop", "shop", settings).worker([]).start()
    assert await _columns(settings) == []
    own = Kit("shop", "shop", settings.model_copy(update={"migrate_on_start": True})).worker([])
    await own.start()
    await own.stop()
    (migrations / "0002_second.py").write_text(SECOND)
    with pytest.raises(Transient, match="is 0001, and this code needs 0002"):
        await Kit("shop", "shop", settings).worker([]).start()
    assert await _columns(settings) == ["id"]


async def test_a_schema_that_comes_late_is_waited_for(settings: ShopSettings, migrations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(settings.database.model_copy(update={"start_seconds": 30}))
    waiting = asyncio.create_task(await_schema(database, "shop"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await asyncio.to_thread(run, monkeypatch, settings, "migrate")
    await waiting
    # The release before works on it.
    (migrations / "0002_second.py").write_text(SECOND)
    await asyncio.to_thread(run, monkeypatch, settings, "migrate")
    (migrations / "0002_second.py").unlink()
    await await_schema(database, "shop")
    await database.stop()
