"""What calls, events and tasks count."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lepton.compute.v1 import allocation_pb2, compute_service_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer, ComputeServiceStub, add_ComputeServiceServicer_to_server
from lepton.data.v1.dataset_pb2 import DatasetVersion
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.db import Database, DatabaseSettings, Unit
from libs.db.infrastructure import metadata as infrastructure
from libs.errors import AppError, Poison, Transient
from libs.events import Consumer, Event, InMemoryEventLog, Relay, handles
from libs.rpc import Client, Server, Signer, Verifier, acting_for, generate_key
from libs.tasks import TaskQueue
from libs.testing.metrics import Read, metrics_read

PRIVATE, PUBLIC = generate_key()


class Compute(ComputeServiceServicer):  # type: ignore[misc]
    """Answers by the id that it is asked for."""

    async def GetAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        match request.id:
            case "slow":
                await asyncio.sleep(10)
            case "away":
                raise Transient("the database is away")
            case "bug":
                raise RuntimeError("a mistake")
        return allocation_pb2.Allocation(id=request.id)


async def test_calls_are_counted_by_service_method_and_status(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    server = Server(address, [(Compute(), add_ComputeServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    await server.start()
    client = Client(ComputeServiceStub, address, Signer(PRIVATE, "training"))
    with metrics_read() as read:
        for id in ("fine", "fine", "bug"):
            await ask(client, id)
        await ask(client, "slow", timeout=0.3)
        await until(lambda: len(read("lepton_rpc_duration_seconds")) >= 3)
        counted = read("lepton_rpc_duration_seconds")
    await client.close()
    await server.stop()
    assert counted == {
        ("compute", "GetAllocation", "OK"): 2,
        ("compute", "GetAllocation", "INTERNAL"): 1,
        ("compute", "GetAllocation", "CANCELLED"): 1,
    }


async def ask(client: Client, id: str, **options: Any) -> None:
    try:
        with acting_for("acme"):
            await client.GetAllocation(compute_service_pb2.GetAllocationRequest(id=id), **options)
    except AppError:
        pass


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    database = Database(DatabaseSettings())
    async with database.engine.begin() as connection:
        await connection.run_sync(infrastructure.create_all)
    yield database
    await database.stop()


def ready(number: int) -> Event:
    return Event.of(DatasetVersionReady(version=DatasetVersion(number=number)), key="acme/iris")


async def test_events_are_counted_from_outbox_to_handler(database: Database) -> None:
    log, events, tries = InMemoryEventLog(), [ready(number) for number in range(4)], 0

    async def handler(_unit: Unit, message: DatasetVersionReady) -> None:
        nonlocal tries
        if message.version.number == 1:
            raise Poison("no good")
        if message.version.number == 2 and tries < 2:
            tries += 1
            raise Transient("not yet")

    with metrics_read() as read:
        relay = Relay(database, log, name="data")
        async with database.unit() as unit:
            await unit.emit(*events)
        await relay.start()
        await until(lambda: bool(read("lepton_outbox_waiting_events")) and bool(read("lepton_events_published_total")))
        await log.publish([events[0]])
        consumer = Consumer("training", database, log, handles((DatasetVersionReady, handler)))
        await consumer.start()
        await until(lambda: sum(read("lepton_events_handled_total").values()) == 5)
        await until(lambda: read("lepton_consumer_lag_events") != {})
        await consumer.stop()
        await relay.stop()
        assert read("lepton_events_handled_total") == {("training", "applied"): 3, ("training", "dead"): 1, ("training", "duplicate"): 1}
        assert read("lepton_event_retries_total") == {("training",): 2}
        published = read("lepton_events_published_total")
        assert published["lepton.data.dataset.v1",] == 4
        assert read("lepton_consumer_lag_events") == read("lepton_outbox_waiting_events") == {}


async def test_tasks_are_counted_by_how_they_ended() -> None:
    queue = TaskQueue("data", "memory://")

    async def done() -> None:
        return None

    async def failed() -> None:
        raise RuntimeError("no")

    async def endless() -> None:
        await asyncio.sleep(100)

    with metrics_read() as read:
        for function in (done, failed):
            await asyncio.create_task(queue._traced("make", function, {}, {}))
        running = asyncio.create_task(queue._traced("wait", endless, {}, {}))
        await asyncio.sleep(0)
        queue.cancel_all()
        await asyncio.wait([running])
        assert read("lepton_tasks_total") == {("data.make", "done"): 1, ("data.make", "failed"): 1, ("data.wait", "cancelled"): 1}
    await queue.stop()


async def until(check: Any) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_value_under_other_labels_than_declared_is_noticed() -> None:
    from libs.events.consumer import _retries

    with metrics_read() as read, pytest.raises(AssertionError, match="declared are"):
        _retries.add(1, workspace="acme")
        read_all: Read = read
        read_all("lepton_event_retries_total")
