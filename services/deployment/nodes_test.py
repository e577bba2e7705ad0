"""Planning in one process, running in others: a replica runs once, and wherever one of them dies another takes its place."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.deployment.v1 import endpoint_pb2
from libs.errors import Conflict
from libs.launcher import Exit, InMemoryLauncher, InMemoryProcess, Launch
from libs.rpc import Client, acting_for
from services.deployment import consumers, repository
from services.deployment.conftest import World, fail, serving
from services.deployment.domain.states import ReplicaState
from services.deployment.handlers import replicas as handlers
from services.deployment.reconciler import Reconciler
from services.deployment.settings import Settings
from services.deployment.tables import Replica
from services.deployment.work_folder import WorkFolder

Eventually = Callable[..., Any]
SOON: dict[str, Any] = {"poll_seconds": 0.02, "owner_lease_seconds": 0.6}


@pytest.fixture
async def planner(world: World) -> AsyncIterator[Reconciler]:
    planner = world.planner(**SOON)
    await planner.start()
    yield planner
    await planner.stop()


@pytest.fixture
async def deployment(world: World, planner: Reconciler, tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(world, planner, tmp_path) as client:
        yield client


async def create(deployment: Client, count: int = 1) -> None:
    with acting_for("acme"):
        await deployment.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc", replicas=count))


async def resolve(deployment: Client) -> Sequence[pb.ReplicaAddress]:
    return (await deployment.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=5))).replicas


async def rows(world: World, *states: ReplicaState) -> list[Replica]:
    async with world.database.read() as session:
        endpoint = await repository.get_endpoint(session, "acme", "wdbc")
        found = await repository.last_replicas(session, endpoint, 100)
    return [row for row in found if not states or row.state in states]


def on(world: World, node: str, *states: ReplicaState) -> Callable[[], Any]:
    """Looks for the rows on that node."""

    async def look() -> list[Replica]:
        return [row for row in await rows(world, *(states or (ReplicaState.READY,))) if row.node == node]

    return look


async def test_a_replica_runs_on_the_node_of_its_allocation(world: World, deployment: Client) -> None:
    first, second = world.node("n1", **SOON), world.node("n2", **SOON, advertise_host="node-2.example")
    await first.start()
    await second.start()
    world.compute.node = "n2"
    await create(deployment)
    [found] = await resolve(deployment)
    [process] = world.launcher.running
    assert found.url == f"http://node-2.example:{40000 + process.pid}"
    assert process.launch.env["CUDA_VISIBLE_DEVICES"] == "3"
    [row] = await rows(world)
    assert (row.node, row.devices, row.owner, row.handle) == ("n2", [3], second.owner, process.handle)
    await first.stop()
    await second.stop()


async def test_two_processes_that_take_everything_run_each_replica_once(world: World, deployment: Client, eventually: Eventually) -> None:
    both = [world.node("n1", node="", work_dir=f"{world.settings.work_dir}-{n}", **SOON) for n in range(2)]
    for node in both:
        await node.start()
    await create(deployment, 6)

    async def all_ready() -> bool:
        return len(await rows(world, ReplicaState.READY)) == 6

    await eventually(all_ready, 20)
    assert len(world.launcher.processes) == 6
    assert len({process.launch.id for process in world.launcher.processes}) == 6
    for node in both:
        await node.stop()


async def test_what_a_lost_node_ran_runs_elsewhere(world: World, deployment: Client, eventually: Eventually) -> None:
    first, second = world.node("n1", **SOON), world.node("n2", **SOON)
    await first.start()
    await second.start()
    await create(deployment)
    [before] = await resolve(deployment)
    await fail(first)
    world.compute.node = "n2"
    [row] = await eventually(on(world, "n2"))
    [after] = await resolve(deployment)
    assert after.id == row.id != before.id
    [ended] = await rows(world, ReplicaState.ENDED)
    assert (ended.id, ended.reason, ended.allocation_id) == (before.id, "the process that ran it is gone", "")
    assert len(world.launcher.running) == 1
    await second.stop()


async def test_a_node_lost_while_its_replica_starts_is_no_failure_of_the_model(
    world: World, deployment: Client, eventually: Eventually
) -> None:
    first, second = world.node("n1", **SOON), world.node("n2", **SOON)
    await first.start()
    await second.start()
    world.silent = True
    await create(deployment)

    async def started() -> bool:
        # Written down: a task that is cancelled within its unit takes a database in memory with it.
        return any(row.handle for row in await rows(world))

    await eventually(started)
    await fail(first)
    world.silent, world.compute.node = False, "n2"
    await eventually(on(world, "n2"))
    with acting_for("acme"):
        assert not (await deployment.GetEndpoint(pb.GetEndpointRequest(name="wdbc"))).HasField("error")
    await second.stop()


async def test_what_nobody_starts_on_its_node_is_asked_for_again(
    world: World, planner: Reconciler, deployment: Client, eventually: Eventually
) -> None:
    second = world.node("n2", **SOON)
    await second.start()
    await create(deployment)
    [row] = await eventually(on(world, "n1", ReplicaState.STARTING))
    assert (row.owner, row.reason) == ("", "waits for node n1 to start it")
    expired = allocation_pb2.Allocation(
        id=row.allocation_id, workspace="acme", holder=row.holder, state=allocation_pb2.ALLOCATION_STATE_EXPIRED
    )
    world.compute.live, world.compute.node = {}, "n2"
    async with world.database.unit() as unit:
        await consumers.reactions(planner.wake, lambda: None)[AllocationEnded](unit, AllocationEnded(allocation=expired))
    [again] = await eventually(on(world, "n2"))
    assert again.id == row.id, "nothing was begun: the same replica waits for another place"
    await second.stop()


async def test_an_end_of_an_allocation_that_nobody_heard_of_is_noticed(world: World, tmp_path: Path, eventually: Eventually) -> None:
    planner, second = world.planner(**SOON, allocation_lease_seconds=1), world.node("n2", **SOON)
    await planner.start()
    await second.start()
    async with serving(world, planner, tmp_path) as deployment:
        await create(deployment)
        await eventually(on(world, "n1", ReplicaState.STARTING))
        world.compute.live, world.compute.node = {}, "n2"
        await eventually(on(world, "n2"))
    await second.stop()
    await planner.stop()


async def test_after_the_leader_another_instance_plans(world: World, tmp_path: Path, eventually: Eventually) -> None:
    node, leader, other = world.node("n1", **SOON), world.planner(leader_lease_seconds=0.3), world.planner(leader_lease_seconds=0.3)
    for part in (node, leader, other):
        await part.start()
    await leader._loop.stop()  # Dead: it resigns nothing.
    async with serving(world, other, tmp_path) as deployment:
        await create(deployment)
        assert len(await resolve(deployment)) == 1
    await node.stop()
    await other.stop()


async def test_a_row_that_drains_ends_on_its_node(world: World, deployment: Client, eventually: Eventually) -> None:
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment, 2)

    async def two() -> bool:
        return len(await resolve(deployment)) == 2

    await eventually(two)
    with acting_for("acme"):
        await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=1))

    async def one() -> bool:
        return len(world.launcher.running) == 1 and len(world.compute.live) == 1

    await eventually(one)
    with acting_for("acme"):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))

    async def none() -> bool:
        return not world.launcher.running and not world.compute.live

    await eventually(none)
    await node.stop()


async def test_a_node_that_stops_hands_back(world: World, deployment: Client, eventually: Eventually) -> None:
    first, second = world.node("n1", **SOON, route_seconds=0.3), world.node("n2", **SOON)
    await first.start()
    await second.start()
    await create(deployment)
    [before] = await resolve(deployment)
    [process] = world.launcher.running
    world.compute.node = "n2"
    stopping = asyncio.create_task(first.stop())
    await eventually(on(world, "n1", ReplicaState.DRAINING))
    assert process.alive(), "routers go on asking until they have heard of it"
    [row] = await eventually(on(world, "n2"))
    await stopping
    assert process.stopped
    assert [(r.id, r.reason) for r in await rows(world, ReplicaState.ENDED)] == [
        (before.id, "the process that ran it was stopped; another replica takes its place")
    ]
    assert list(world.compute.live) == [row.holder]
    assert [r.id for r in await resolve(deployment)] == [row.id]
    await second.stop()


async def test_a_node_that_stops_breaks_off_what_it_fetches(
    world: World, deployment: Client, eventually: Eventually, monkeypatch: Any
) -> None:
    fetching = asyncio.Event()

    async def fetch(digest: str, path: Path) -> None:
        fetching.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(world.store, "fetch", fetch)
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    await asyncio.wait_for(fetching.wait(), 5)
    async with asyncio.timeout(2):
        await node.stop()
    assert [row.state for row in await rows(world) if row.owner == node.owner] == [ReplicaState.ENDED]


async def test_a_node_that_comes_back_too_late_ends_what_it_ran(world: World, deployment: Client, eventually: Eventually) -> None:
    first, second = world.node("n1", **SOON), world.node("n2", **SOON)
    await first.start()
    await second.start()
    await create(deployment)
    await resolve(deployment)
    [process] = world.launcher.running
    await first._loop.stop()  # It hears and says nothing, and its replica runs on.
    world.compute.node = "n2"
    await eventually(on(world, "n2"))
    assert process.alive()
    await first._loop.start()

    async def ended() -> bool:
        return process.stopped

    await eventually(ended)
    assert len(await resolve(deployment)) == 1
    await first.stop()
    await second.stop()


async def test_who_was_silent_while_nobody_could_look_is_given_time(world: World, deployment: Client, planner: Reconciler) -> None:
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    [before] = await resolve(deployment)
    await planner._loop.stop()
    await node._loop.stop()
    await asyncio.sleep(SOON["owner_lease_seconds"] + 0.1)  # As when the database is away for all.
    await planner._loop.start()
    await asyncio.sleep(0.1)
    await node._loop.start()
    await asyncio.sleep(SOON["owner_lease_seconds"])
    assert [row.id for row in await resolve(deployment)] == [before.id]
    await node.stop()


async def test_who_is_heard_of_is_not_buried(world: World, deployment: Client) -> None:
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    await resolve(deployment)
    [seen] = await rows(world)
    async with world.database.unit() as unit:
        await repository.renew_leases(unit.session, node.owner, seen.lease_expires + 1)
    async with world.database.unit() as unit:
        await handlers.bury(unit, seen=seen, reason="silent", now=0.0)
        await handlers.note_ended(unit, workspace="acme", id=seen.id, owner="somebody else", reason="not mine", now=0.0)
    assert [row.state for row in await rows(world)] == [ReplicaState.READY]
    await node.stop()


async def test_a_node_that_starts_again_ends_what_it_left(world: World, deployment: Client, eventually: Eventually) -> None:
    first = world.node("n1", **{**SOON, "owner_lease_seconds": 3600.0})
    await first.start()
    await create(deployment)
    [before] = await resolve(deployment)
    await fail(first)
    again = world.node("n1", **SOON)
    await again.start()
    assert [(row.id, row.reason) for row in await rows(world, ReplicaState.ENDED)] == [(before.id, "the process that ran it ended")]
    assert [row.id for row in await resolve(deployment)] != [before.id]
    await again.stop()


def test_a_work_folder_is_one_process_s(tmp_path: Path) -> None:
    first, second = WorkFolder(tmp_path), WorkFolder(tmp_path)
    assert first.open() == ""
    first.sign("a long name of the first")
    (first.replicas / "rep-1").mkdir()
    with pytest.raises(Conflict, match="LEPTON_DEPLOYMENT_WORK_DIR"):
        second.open()
    assert (first.replicas / "rep-1").exists()
    first.close()
    assert second.open() == "a long name of the first"
    assert not (second.replicas / "rep-1").exists()
    second.sign("the second")
    second.close()
    assert first.open() == "the second"
    first.close()


def test_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "worker-1")
    assert (Settings().advertised_host, Settings().probed_host) == ("127.0.0.1", "127.0.0.1")
    everywhere = Settings(replica_host="0.0.0.0")
    assert (everywhere.advertised_host, everywhere.probed_host) == ("worker-1", "127.0.0.1")
    assert Settings(replica_host="::").probed_host == "::1"
    named = Settings(replica_host="0.0.0.0", advertise_host="10.0.0.7")
    assert named.advertised_host == "10.0.0.7"
    for wrong in ({"advertise_host": "http://node"}, {"advertise_host": "node:8080"}, {"replica_host": ""}, {"replica_host": "no host"}):
        with pytest.raises(ValidationError, match="neither a host's name nor an address"):
            Settings(**wrong)
    with pytest.raises(ValidationError, match="no address that anybody can reach"):
        Settings(advertise_host="0.0.0.0")


async def test_a_replica_on_another_machine_is_asked_there(world: World, deployment: Client, eventually: Eventually) -> None:
    def answer(process: InMemoryProcess) -> None:
        process.host = "10.0.0.7"
        world.answer(process)

    world.launcher.on_start = answer
    node = world.node("n1", **SOON, replica_port=8000)
    await node.start()
    world.compute.node = "n1"
    await create(deployment)
    [found] = await resolve(deployment)
    [process] = world.launcher.running
    assert found.url == f"http://10.0.0.7:{40000 + process.pid}"
    launch = process.launch
    words = [str(word) for word in launch.argv]
    assert words[words.index("--port") + 1] == "8000"
    assert (launch.node, launch.devices, launch.labels["role"], len(launch.inputs)) == ("n1", 1, "replica", 1)
    await node.stop()


class SlowLauncher(InMemoryLauncher):
    """Its starts take until they are broken off, as where an image has to come first."""

    def __init__(self) -> None:
        super().__init__()
        self.starting = self.broken_off = 0

    async def start(self, launch: Launch) -> InMemoryProcess:
        self.starting += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        raise AssertionError


async def test_a_replica_that_has_to_go_while_it_is_started_is_broken_off(world: World, deployment: Client, eventually: Eventually) -> None:
    world.launcher = slow = SlowLauncher()
    node = world.node("n1", **SOON)
    await node.start()
    world.compute.node = "n1"
    await create(deployment)

    async def starting() -> bool:
        return slow.starting > 0

    await eventually(starting)
    with acting_for("acme"):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))

    async def broken_off() -> bool:
        return slow.broken_off == slow.starting

    await eventually(broken_off)
    await node.stop()


async def told_seconds(world: World) -> float:
    return sum(event.seconds for name, event in await world.events() if name == "ReplicasServed")


async def test_ready_time_is_told_while_it_passes_and_once(world: World, deployment: Client, eventually: Eventually) -> None:
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    await resolve(deployment)

    async def told_twice() -> bool:
        return [name for name, _ in await world.events()].count("ReplicasServed") >= 2

    await eventually(told_twice)
    [row] = await rows(world, ReplicaState.READY)
    assert row.metered_until and row.ready_time
    assert await told_seconds(world) >= row.metered_until - row.ready_time - 1e-6
    world.launcher.running[0].exit(Exit(None, 9))
    [ended] = await eventually(on(world, "n1", ReplicaState.ENDED))
    of_next = [row for row in await rows(world) if row.id != ended.id and row.metered_until]
    spent = ended.end_time - ended.ready_time + sum(row.metered_until - row.ready_time for row in of_next)
    assert await told_seconds(world) == pytest.approx(spent, abs=1e-3)
    assert {event.endpoint for name, event in await world.events() if name == "ReplicasServed"} == {"wdbc"}
    await node.stop()


async def test_nobody_pays_for_the_silence_of_a_killed_node(world: World, deployment: Client, eventually: Eventually) -> None:
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    await resolve(deployment)

    async def told() -> float:
        return await told_seconds(world)

    await eventually(told)
    await fail(node)
    before = await told()
    world.compute.waiting = "waits"
    [ended] = await eventually(on(world, "n1", ReplicaState.ENDED))
    assert await told() == before == pytest.approx(ended.metered_until - ended.ready_time, abs=1e-3)


async def test_a_revision_that_nobody_wants_is_forgotten_and_one_of_no_replicas_is_not(
    world: World, deployment: Client, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.deployment.node.FORGET_SECONDS", 0.0)
    node = world.node("n1", **SOON)
    await node.start()
    await create(deployment)
    await eventually(on(world, "n1"))
    [first] = world.launcher.running
    await world.add_model("wdbc@2")
    with acting_for("acme"):
        at_once = endpoint_pb2.Rollout(canary_percents=[100], step_seconds=0, prove_seconds=0)
        await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", model="wdbc@2", rollout=at_once))

    async def forgotten() -> list[str]:
        return world.launcher.forgotten

    assert await eventually(forgotten) == [first.launch.group]
    [second] = world.launcher.running
    assert second.launch.group not in ("", first.launch.group)
    with acting_for("acme"):
        await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=0))

    async def stopped() -> bool:
        return not world.launcher.running and not node._runs

    await eventually(stopped)
    await asyncio.sleep(0.1)
    assert world.launcher.forgotten == [first.launch.group]
    with acting_for("acme"):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))

    async def both() -> bool:
        return world.launcher.forgotten == [first.launch.group, second.launch.group]

    await eventually(both)
    await node.stop()
