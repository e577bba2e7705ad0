"""What other services say has ended gives its reservations back, and nothing else's."""

import time
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import select

from lepton.common.v1 import resource_pb2
from lepton.compute.v1.allocation_pb2 import Allocation
from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetDeleted, DatasetVersionFailed
from lepton.deployment.v1.events_pb2 import EndpointDeleted, PredictionsServed, ReplicasServed
from lepton.training.v1.events_pb2 import TrainingJobEnded
from lepton.training.v1.job_pb2 import TrainingJob
from libs.db import Database
from libs.events import Event, handling
from libs.testing import FakeClock
from services.accounts import handlers, repository
from services.accounts.consumers import reactions
from services.accounts.settings import Settings
from services.accounts.tables import Reservation, UsageRecord

HELD = {
    "training-jobs/default/j1": "concurrent_training_jobs",
    "training-jobs/default/j11": "concurrent_training_jobs",
    "endpoints/default/e": "endpoints",
    "datasets/default/iris@1": "storage_bytes",
    "datasets/default/iris@12": "storage_bytes",
    "datasets/default/iris_1@1": "storage_bytes",
    "datasets/default/irisx@1": "storage_bytes",
}


async def reserve(database: Database, name: str, metric: str, now: float) -> None:
    async with database.unit() as unit:
        await handlers.reserve_quota(unit, workspace="default", metric=metric, reservation=name, amount=1, now=now)


async def tell(database: Database, message: Message, times: int = 1) -> None:
    event: Any = Event.of(message, key="k")
    for _ in range(times):
        await _hear(database, message, event)


async def _hear(database: Database, message: Message, event: Any) -> None:
    async with database.unit() as unit:
        with handling(event):
            await reactions(Settings().platform_fee_percent)[type(message)](unit, message)


@pytest.mark.parametrize(
    ("message", "released"),
    [
        (TrainingJobEnded(job=TrainingJob(id="j1", workspace="default")), {"training-jobs/default/j1"}),
        (TrainingJobEnded(job=TrainingJob(id="j1", workspace="other")), set()),
        (EndpointDeleted(workspace="default", endpoint="e"), {"endpoints/default/e"}),
        (DatasetDeleted(workspace="default", dataset="iris"), {"datasets/default/iris@1", "datasets/default/iris@12"}),
        (DatasetDeleted(workspace="default", dataset="iri_"), set()),
        (DatasetDeleted(workspace="default", dataset="%"), set()),
        (
            DatasetVersionFailed(version=DatasetVersion(workspace="default", dataset="iris", number=1)),
            {"datasets/default/iris@1"},
        ),
    ],
)
async def test_an_end_releases_what_it_names(database: Database, message: Message, released: set[str]) -> None:
    for name, metric in HELD.items():
        await reserve(database, name, metric, now=0)
    await tell(database, message)
    async with database.read() as session:
        left = set((await session.execute(select(Reservation.name))).scalars())
    assert left == set(HELD) - released


async def test_what_was_stored_is_owed(database: Database) -> None:
    async with database.unit() as unit:
        await handlers.reserve_quota(
            unit, workspace="default", metric="storage_bytes", reservation="datasets/default/iris@1", amount=1 << 40, now=time.time() - 60
        )
    await tell(database, DatasetDeleted(workspace="default", dataset="iris"))
    async with database.read() as session:
        query = select(UsageRecord.resource, UsageRecord.quantity).where(UsageRecord.metric == "storage_gib_months")
        rows = (await session.execute(query)).all()
    assert {row.resource for row in rows} == {"datasets/iris@1"}
    assert 1024 * 60 / (31 * 86400) <= sum(row.quantity for row in rows) / 1e6 <= 1024 * 70 / (28 * 86400)


async def test_the_end_of_a_namesake_releases_nothing(database: Database) -> None:
    """Deleted and made again before the news of the deletion arrives."""
    await reserve(database, "endpoints/default/e", "endpoints", now=0)
    await reserve(database, "endpoints/default/e", "endpoints", now=4e9)
    await tell(database, EndpointDeleted(workspace="default", endpoint="e"))
    async with database.read() as session:
        assert await repository.reservation(session, "default", "endpoints/default/e", "endpoints")


async def test_an_allocation_is_billed_to_what_it_was_for(database: Database, clock: FakeClock) -> None:
    def ended(holder: str, seconds: float, workers: int = 0, **resources: int) -> AllocationEnded:
        needs = resource_pb2.Resources(**resources)  # type: ignore[arg-type]
        held = Allocation(id=holder, workspace="default", holder=holder, resources=needs, workers=workers)
        return AllocationEnded(allocation=held, seconds=seconds)

    for message in (
        ended("training-jobs/j1/attempts/1", 10, accelerator=1, count=2),
        ended("training-jobs/j1/attempts/2", 10, accelerator=1, count=2, cpu_millis=1500),
        ended("training-jobs/j2/attempts/1", 10, accelerator=2, count=3, cpu_millis=3000),
        ended("training-jobs/j3/attempts/1", 10, workers=4, accelerator=1, count=2),
        ended("endpoints/e/replicas/r", 10, cpu_millis=100),
        ended("endpoints/e/replicas/never-granted", 0, cpu_millis=100),
    ):
        # An allocation ends once, though two events may say so.
        await tell(database, message)
        await tell(database, message)
    async with database.read() as session:
        query = select(UsageRecord.metric, UsageRecord.resource, UsageRecord.quantity).where(UsageRecord.source == "/lepton/compute")
        rows = {tuple(row) for row in await session.execute(query)}
    assert rows == {
        ("cpu_seconds", "training-jobs/j1", 20_000_000),
        ("cpu_seconds", "training-jobs/j1", 15_000_000),
        ("gpu_seconds", "training-jobs/j2", 30_000_000),
        ("cpu_seconds", "training-jobs/j3", 80_000_000),
        ("cpu_seconds", "endpoints/e", 1_000_000),
    }


async def test_ready_time_and_tokens_are_written_down_once_and_free_where_no_plan_says_their_price(database: Database) -> None:
    served = ReplicasServed(workspace="default", endpoint="e", seconds=3.25)
    predicted = PredictionsServed(workspace="default", endpoint="e", requests=1, rows=2, tokens_in=70, tokens_out=30)
    for message in (served, predicted):
        await tell(database, message, times=2)
    async with database.read() as session:
        query = select(UsageRecord.metric, UsageRecord.quantity, UsageRecord.amount, UsageRecord.resource).where(
            UsageRecord.source == "/lepton/deployment"
        )
        found = {row.metric: (row.quantity, row.resource, row.amount) for row in await session.execute(query)}
    assert found.pop("predictions")[:2] == (2_000_000, "endpoints/e")
    assert found == {
        "replica_seconds": (3_250_000, "endpoints/e", 0),
        "tokens_in": (70_000_000, "endpoints/e", 0),
        "tokens_out": (30_000_000, "endpoints/e", 0),
    }


async def test_a_part_of_a_batch_prediction_is_used_of_what_it_reserved_and_not_counted_twice(database: Database) -> None:
    name = "batch-predictions/default/bp-1"
    async with database.unit() as unit:
        await handlers.reserve_quota(unit, workspace="default", metric="predictions", reservation=name, amount=5000, now=time.time())
    for rows in (3000, 1500, 600):
        await tell(database, PredictionsServed(workspace="default", batch_prediction="bp-1", requests=1, rows=rows))
    async with database.unit() as unit:
        held = await unit.session.get_one(Reservation, ("default", name, "predictions"))
        query = select(UsageRecord.quantity, UsageRecord.resource).where(UsageRecord.metric == "predictions")
        found = [tuple(row) for row in await unit.session.execute(query)]
        assert (held.amount, held.expire_time) == (0, None)
    assert found == [(rows * 1_000_000, "batch-predictions/bp-1") for rows in (3000, 1500, 600)]
