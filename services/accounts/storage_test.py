"""Models in the store: what is in use is the sum of what is there, and each byte is owed for as long as it was."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import select

from lepton.common.v1.resource_pb2 import Artifact
from lepton.training.v1.events_pb2 import ModelDeleted, ModelVersionRegistered
from lepton.training.v1.model_pb2 import ModelVersion
from libs.db import Database
from libs.errors import Poison, QuotaExceeded
from libs.events import Event, handling
from libs.testing import FakeClock
from services.accounts import handlers
from services.accounts.consumers import reactions
from services.accounts.domain.metering import gib_months
from services.accounts.settings import Settings
from services.accounts.tables import UsageRecord, Workspace

START, GIB = 1_790_900_000.0, 1 << 30  # The second of October 2026.


async def tell(database: Database, message: Message, at: float) -> None:
    event = Event.of(message, key="k")
    dated = Event(event.id, event.source, event.type, event.topic, event.key, datetime.fromtimestamp(at, UTC).isoformat(), event.data)
    async with database.unit() as unit:
        with handling(dated):
            await reactions(Settings().platform_fee_percent)[type(message)](unit, message)


def registered(name: str, number: int, *sizes: int, reservation: str = "", workspace: str = "default") -> ModelVersionRegistered:
    files = [Artifact(path=str(index), size_bytes=size) for index, size in enumerate(sizes)]
    version = ModelVersion(workspace=workspace, model=name, number=number, files=files)
    return ModelVersionRegistered(model_version=version, reservation=reservation)


async def reserve(database: Database, name: str, amount: int, at: float = START) -> None:
    async with database.unit() as unit:
        await handlers.reserve_quota(unit, workspace="default", metric="storage_bytes", reservation=name, amount=amount, now=at)


async def used(database: Database) -> int:
    async with database.read() as session:
        workspace = await session.get_one(Workspace, "default")
        return next(q.used for q in await handlers.quotas(session, workspace=workspace, now=START) if q.metric == "storage_bytes")


async def owed(database: Database) -> dict[str, int]:
    """Millionths of a GiB-month by resource."""
    async with database.read() as session:
        query = select(UsageRecord.resource, UsageRecord.quantity).where(UsageRecord.metric == "storage_gib_months")
        return {row.resource: row.quantity for row in await session.execute(query)}


async def test_an_upload_is_counted_once_before_and_after_its_event(database: Database) -> None:
    await reserve(database, "uploads/default/a", 30)
    assert await used(database) == 30
    event = registered("m", 1, 10, 20, reservation="uploads/default/a")
    for _ in range(2):
        await tell(database, event, START + 1)
        assert await used(database) == 30
    await tell(database, ModelDeleted(workspace="default", model="m"), START + 2)
    assert await used(database) == 0


async def test_what_was_trained_goes_over_and_the_next_is_refused(database: Database) -> None:
    await tell(database, registered("m", 1, 2 << 40), START)
    assert await used(database) == 2 << 40
    with pytest.raises(QuotaExceeded, match="1 TiB of storage and 2 TiB are in use; delete a dataset or a model, or"):
        await reserve(database, "training-jobs/default/job-1", 1)
    await tell(database, ModelDeleted(workspace="default", model="m"), START + 1)
    await reserve(database, "training-jobs/default/job-1", 1)


async def test_a_namesake_that_lives_again_keeps_its_own(database: Database) -> None:
    await tell(database, registered("m", 2, 7), START + 2)
    await tell(database, ModelDeleted(workspace="default", model="m"), START + 1)
    assert await used(database) == 7


async def test_others_with_such_a_name_keep_theirs(database: Database) -> None:
    for name in ("m", "m-2", "mm"):
        await tell(database, registered(name, 1, 5), START)
    await reserve(database, "datasets/default/m@1", 5)
    for workspace, model in (("other", "m"), ("default", "m"), ("default", "_"), ("default", "%")):
        await tell(database, ModelDeleted(workspace=workspace, model=model), START + 1)
    assert await used(database) == 15


async def test_nobody_stores_nothing(database: Database) -> None:
    with pytest.raises(Poison, match="no workspace 'nobody'"):
        await tell(database, registered("m", 1, 5, workspace="nobody"), START)


@pytest.mark.parametrize("seed", range(8))
async def test_the_sum_is_that_of_what_is_there_and_each_is_owed_for_its_time(database: Database, clock: FakeClock, seed: int) -> None:
    chance, now = random.Random(seed), START
    there: dict[str, tuple[int, float]] = {}
    numbers: dict[str, int] = {}
    expected: dict[str, Any] = {}
    for step in range(40):
        now += chance.randrange(1, 40_000)
        name = chance.choice(("a", "b", "c"))
        if chance.random() < 0.7:
            numbers[name] = number = numbers.get(name, 0) + 1
            sizes, upload = [chance.randrange(4 * GIB) for _ in range(chance.randrange(4))], ""
            if chance.random() < 0.5:
                upload = f"uploads/default/{step}"
                await reserve(database, upload, sum(sizes), now)
            event: Message = registered(name, number, *sizes, reservation=upload)
            there[f"{name}@{number}"] = (sum(sizes), now)
        else:
            event = ModelDeleted(workspace="default", model=name)
            for version in [version for version in there if version.startswith(f"{name}@")]:
                size, since = there.pop(version)
                expected[f"models/{version}"] = round(gib_months(size, since, now) * 1_000_000)
        for _ in range(chance.randrange(1, 3)):
            await tell(database, event, now)
        assert await used(database) == sum(size for size, _ in there.values())
    found = await owed(database)
    assert set(found) <= set(expected)
    assert all(abs(found.get(resource, 0) - quantity) <= 1 for resource, quantity in expected.items())
