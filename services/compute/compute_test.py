"""The compute service through its own gRPC server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from lepton.common.v1.options_pb2 import ROLE_EDITOR, ROLE_OPERATOR
from lepton.common.v1.resource_pb2 import ACCELERATOR_GPU, Resources
from lepton.compute.v1 import allocation_pb2, compute_service_pb2, node_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub, add_ComputeServiceServicer_to_server
from lepton.compute.v1.events_pb2 import AllocationEnded
from libs.db import Database
from libs.db.infrastructure import outbox
from libs.errors import AppError, Forbidden, NotFound
from libs.rpc import Client, Server, Signer, Verifier, acting_for, generate_key
from libs.testing import FakeClock, migrated_database, schema_differences
from services.compute import hardware
from services.compute.handlers import Scheduler
from services.compute.servicer import ComputeServicer
from services.compute.tables import Table

PRIVATE, PUBLIC = generate_key()


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with migrated_database("services.compute") as database:
        yield database


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(patience_seconds=60, clock=FakeClock())


@pytest.fixture
async def compute(database: Database, scheduler: Scheduler, tmp_path: Path) -> AsyncIterator[Client]:
    address = f"unix:{tmp_path}/compute.sock"
    server = Server(address, [(ComputeServicer(database, scheduler), add_ComputeServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    await server.start()
    client = Client(ComputeServiceStub, address, Signer(PRIVATE, "gateway"))
    await client.RegisterNode(
        compute_service_pb2.RegisterNodeRequest(node=node_pb2.Node(name="n1", cpu_millis=2000, memory_bytes=8 * 2**30))
    )
    yield client
    await client.close()
    await server.stop()


def ask(holder: str, cores: int = 1, workspace: str = "acme") -> compute_service_pb2.CreateAllocationRequest:
    return compute_service_pb2.CreateAllocationRequest(
        workspace=workspace, holder=holder, resources=Resources(count=cores, memory_bytes=2**30), lease_seconds=30
    )


async def ended_seconds(database: Database) -> list[float]:
    async with database.read() as session:
        rows = (await session.execute(select(outbox))).all()
    return [AllocationEnded.FromString(r.data).seconds for r in rows if r.headers["ce_type"].endswith("AllocationEnded")]


async def test_the_migrations_make_the_tables() -> None:
    assert await schema_differences("services.compute", Table.metadata) == []


async def test_room_is_granted_at_once_and_the_next_waits_with_a_reason(compute: Client) -> None:
    first = await compute.CreateAllocation(ask("job-1", cores=2))
    second = await compute.CreateAllocation(ask("job-2"))
    assert first.state == allocation_pb2.ALLOCATION_STATE_GRANTED
    assert (second.state, second.reason) == (
        allocation_pb2.ALLOCATION_STATE_QUEUED,
        "waits for 1 core: node n1 has 0 of 2 cores free",
    )
    await compute.ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id=first.id))
    with acting_for("acme"):
        again = await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=second.id))
    assert (again.state, again.node) == (allocation_pb2.ALLOCATION_STATE_GRANTED, "n1")


async def test_who_holds_many_asks_about_all_at_once(compute: Client) -> None:
    ids = [(await compute.CreateAllocation(ask(f"job-{number}"))).id for number in range(3)]
    answer = await compute.BatchGetAllocations(compute_service_pb2.BatchGetAllocationsRequest(ids=[*ids, "al-unknown"]))
    assert {a.id: a.reason for a in answer.allocations} == dict.fromkeys(ids[:2], "") | {
        ids[2]: "waits for 1 core: node n1 has 0 of 2 cores free"
    }


async def test_the_same_holder_has_one_allocation(compute: Client) -> None:
    assert (await compute.CreateAllocation(ask("job-1"))).id == (await compute.CreateAllocation(ask("job-1"))).id


async def test_what_never_fits_is_refused(compute: Client) -> None:
    with pytest.raises(AppError, match="no node can hold 64 cores"):
        await compute.CreateAllocation(ask("job-1", cores=64))


async def test_a_gang_is_granted_as_a_whole_and_over_nodes_of_a_cluster_only(compute: Client) -> None:
    gang = ask("gang")
    gang.workers = 4
    with pytest.raises(AppError, match="no node can hold 4 workers with 1 core each"):
        await compute.CreateAllocation(gang)
    for name in ("c1", "c2"):
        node = node_pb2.Node(name=name, pool="lab", cpu_millis=2000, memory_bytes=8 * 2**30, cluster=True)
        await compute.RegisterNode(compute_service_pb2.RegisterNodeRequest(node=node))
    held = await compute.CreateAllocation(gang)
    assert (held.state, held.workers, list(held.nodes), held.node) == (allocation_pb2.ALLOCATION_STATE_GRANTED, 4, ["c1", "c2"], "c1")
    with acting_for("acme"):
        nodes = (await compute.ListNodes(compute_service_pb2.ListNodesRequest())).nodes
    assert {node.name: node.free_cpu_millis for node in nodes} == {"c1": 0, "c2": 0, "n1": 2000}
    gang.holder = "another gang"
    waits = await compute.CreateAllocation(gang)
    assert (waits.state, list(waits.nodes)) == (allocation_pb2.ALLOCATION_STATE_QUEUED, [])
    await compute.ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id=held.id))
    with acting_for("acme"):
        assert list((await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=waits.id))).nodes) == ["c1", "c2"]


async def test_without_renewal_it_is_taken_back_and_billed_to_the_last_one(
    compute: Client, database: Database, scheduler: Scheduler
) -> None:
    clock = scheduler.clock
    assert isinstance(clock, FakeClock)
    allocation = await compute.CreateAllocation(ask("job-1"))
    clock.advance(20)
    await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=allocation.id))
    clock.advance(31)
    async with database.unit() as unit:
        await scheduler.expire(unit, node_lease_seconds=15)
    assert await ended_seconds(database) == [20.0]
    with pytest.raises(AppError) as ended:
        await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=allocation.id))
    assert ended.value.code == "allocation_ended"
    with acting_for("acme"):
        (node,) = (await compute.ListNodes(compute_service_pb2.ListNodesRequest())).nodes
    assert (node.state, node.free_cpu_millis) == (node_pb2.NODE_STATE_LOST, 2000)


async def test_a_release_is_billed_once(compute: Client, database: Database, scheduler: Scheduler) -> None:
    allocation = await compute.CreateAllocation(ask("job-1"))
    assert isinstance(scheduler.clock, FakeClock)
    scheduler.clock.advance(7)
    for _ in range(2):
        await compute.ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id=allocation.id))
    assert await ended_seconds(database) == [7.0]


async def test_a_queued_one_can_be_taken_out_and_costs_nothing(compute: Client, database: Database) -> None:
    await compute.CreateAllocation(ask("job-1", cores=2))
    queued = await compute.CreateAllocation(ask("job-2"))
    released = await compute.ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id=queued.id))
    assert released.state == allocation_pb2.ALLOCATION_STATE_RELEASED
    assert await ended_seconds(database) == []


async def test_another_workspace_sees_nothing(compute: Client) -> None:
    allocation = await compute.CreateAllocation(ask("job-1"))
    with acting_for("rival", role=ROLE_EDITOR):
        with pytest.raises(NotFound):
            await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=allocation.id))
        assert not (await compute.ListAllocations(compute_service_pb2.ListAllocationsRequest())).allocations


async def test_only_the_operator_cordons(compute: Client) -> None:
    request = compute_service_pb2.UpdateNodeRequest(name="n1", state=node_pb2.NODE_STATE_CORDONED)
    with acting_for("acme", role=ROLE_EDITOR), pytest.raises(Forbidden):
        await compute.UpdateNode(request)
    with acting_for("acme", role=ROLE_OPERATOR):
        assert (await compute.UpdateNode(request)).state == node_pb2.NODE_STATE_CORDONED
    waiting = await compute.CreateAllocation(ask("job-1"))
    assert "cordoned" in waiting.reason


async def test_what_its_cluster_cordons_keeps_its_work_gets_nothing_new_and_is_opened_there(compute: Client) -> None:
    async def register(state: int) -> int:
        node = node_pb2.Node(name="n1", cpu_millis=2000, memory_bytes=8 * 2**30, state=state)
        return (await compute.RegisterNode(compute_service_pb2.RegisterNodeRequest(node=node))).state

    held = await compute.CreateAllocation(ask("job-1"))
    assert await register(node_pb2.NODE_STATE_CORDONED) == node_pb2.NODE_STATE_CORDONED
    waiting = await compute.CreateAllocation(ask("job-2"))
    assert "cordoned" in waiting.reason
    renewed = await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=held.id))
    assert renewed.state == allocation_pb2.ALLOCATION_STATE_GRANTED
    opening = compute_service_pb2.UpdateNodeRequest(name="n1", state=node_pb2.NODE_STATE_READY)
    with acting_for("acme", role=ROLE_OPERATOR), pytest.raises(AppError, match="opened there"):
        await compute.UpdateNode(opening)
    assert await register(node_pb2.NODE_STATE_UNSPECIFIED) == node_pb2.NODE_STATE_READY
    with acting_for("acme"):
        granted = await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=waiting.id))
    assert granted.state == allocation_pb2.ALLOCATION_STATE_GRANTED


async def test_what_others_hold_just_now_is_waited_for_and_what_is_nowhere_is_refused(compute: Client) -> None:
    async def register(cores: int) -> None:
        node = node_pb2.Node(name="n1", cpu_millis=1000 * cores, memory_bytes=8 * 2**30)
        devices = [node_pb2.Device(index=0, accelerator=ACCELERATOR_GPU)]
        whole = node_pb2.Node(name="n1", cpu_millis=4000, memory_bytes=16 * 2**30, devices=devices)
        await compute.RegisterNode(compute_service_pb2.RegisterNodeRequest(node=node, whole=whole))

    await register(1)
    waiting = await compute.CreateAllocation(ask("job-1", cores=4))
    assert (waiting.state, waiting.reason) == (
        allocation_pb2.ALLOCATION_STATE_QUEUED,
        "waits for 4 cores: no node has so much now",
    )
    gpu = Resources(accelerator=ACCELERATOR_GPU, count=1)
    request = compute_service_pb2.CreateAllocationRequest(workspace="acme", holder="job-2", resources=gpu)
    assert (await compute.CreateAllocation(request)).state == allocation_pb2.ALLOCATION_STATE_QUEUED
    with pytest.raises(AppError, match="no node can hold 5 cores"):
        await compute.CreateAllocation(ask("job-3", cores=5))
    await register(4)
    with acting_for("acme"):
        assert (await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=waiting.id))).node == "n1"


async def test_a_cluster_that_opens_a_node_does_not_undo_what_the_operator_said(compute: Client) -> None:
    with acting_for("acme", role=ROLE_OPERATOR):
        await compute.UpdateNode(compute_service_pb2.UpdateNodeRequest(name="n1", state=node_pb2.NODE_STATE_CORDONED))
    for state in (node_pb2.NODE_STATE_CORDONED, node_pb2.NODE_STATE_UNSPECIFIED):
        node = node_pb2.Node(name="n1", cpu_millis=2000, memory_bytes=8 * 2**30, state=state)
        answer = await compute.RegisterNode(compute_service_pb2.RegisterNodeRequest(node=node))
        assert answer.state == node_pb2.NODE_STATE_CORDONED


async def test_pages(compute: Client) -> None:
    ids = [(await compute.CreateAllocation(ask(f"job-{n}"))).id for n in range(5)]
    seen, token = [], ""
    with acting_for("acme"):
        while True:
            page = await compute.ListAllocations(compute_service_pb2.ListAllocationsRequest(page_size=2, page_token=token))
            seen += [a.id for a in page.allocations]
            token = page.next_page_token
            if not token:
                break
    assert seen == ids[::-1]


def test_this_machine_is_a_node() -> None:
    node = hardware.detect("", "default")
    assert node.name
    assert node.cpu_millis >= 1000
    assert node.memory_bytes > 2**28


async def test_a_database_that_was_away_takes_nobody_s_allocation(compute: Client, database: Database, scheduler: Scheduler) -> None:
    with acting_for("acme"):
        held = await compute.CreateAllocation(ask("holder"))
    clock = scheduler.clock
    assert isinstance(clock, FakeClock)
    scheduler.swept()
    clock.advance(60)
    # The first look after a silence: nobody could renew, and everybody has the whole time again.
    scheduler.swept()
    async with database.unit() as unit:
        await scheduler.expire(unit, node_lease_seconds=15)
    with acting_for("acme"):
        assert (await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=held.id))).id == held.id
    for _ in range(31):
        clock.advance(1)
        scheduler.swept()
    async with database.unit() as unit:
        await scheduler.expire(unit, node_lease_seconds=15)
    with acting_for("acme"), pytest.raises(AppError):
        await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=held.id))


async def test_a_lost_node_is_shown_for_a_day_or_while_something_lives_there(
    compute: Client, database: Database, scheduler: Scheduler
) -> None:
    clock = scheduler.clock
    assert isinstance(clock, FakeClock)

    async def states() -> list[int]:
        async with database.unit() as unit:
            await scheduler.expire(unit, node_lease_seconds=15)
        with acting_for("acme"):
            return [node.state for node in (await compute.ListNodes(compute_service_pb2.ListNodesRequest())).nodes]

    clock.advance(3600)
    assert await states() == [node_pb2.NODE_STATE_LOST]
    clock.advance(86_400)
    assert await states() == []
