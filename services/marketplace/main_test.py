"""It starts, stops, and forgets what nobody will repeat."""

import time
from pathlib import Path

from libs.events import EventLogSettings
from libs.rpc import generate_key
from libs.service import IdentitySettings, PeerSettings
from libs.testing import database_settings, migrated_database
from services.marketplace import repository
from services.marketplace.main import BATCHES_KEPT_SECONDS, build, forget_batches
from services.marketplace.settings import Settings
from services.marketplace.tables import InvocationBatch


async def test_it_starts_and_stops_whole(tmp_path: Path) -> None:
    settings = Settings(
        listen=f"unix:{tmp_path}/m",
        database=await database_settings(f"sqlite+aiosqlite:///{tmp_path}/marketplace.db"),
        events=EventLogSettings(url=f"sqlite:///{tmp_path}/events.db"),
        identity=IdentitySettings(private_key=generate_key()[0]),
        peers=PeerSettings(deployment=f"unix:{tmp_path}/d"),
    )
    service = build(settings)
    await service.start()
    await service.stop()


async def test_old_batches_are_forgotten() -> None:
    async with migrated_database("services.marketplace") as database:
        now = time.time()
        async with database.unit() as unit:
            unit.session.add(InvocationBatch(batch_id="new", time=now))
            unit.session.add(InvocationBatch(batch_id="old", time=now - BATCHES_KEPT_SECONDS - 60))
        await forget_batches(database)
        async with database.read() as session:
            assert await repository.batch(session, "new") and not await repository.batch(session, "old")
