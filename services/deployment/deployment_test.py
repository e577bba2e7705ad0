"""The deployment service through its own gRPC server, its processes made up."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton.common.v1.options_pb2 import ROLE_EDITOR, ROLE_VIEWER
from lepton.common.v1.resource_pb2 import Resources
from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.deployment.v1 import endpoint_pb2
from libs.errors import AppError, Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from libs.launcher import Exit
from libs.rpc import Client, acting_for
from libs.testing import schema_differences
from services.deployment import consumers, repository
from services.deployment.conftest import Embedded, World, serving
from services.deployment.domain.states import ReplicaState
from services.deployment.runner import KILLED
from services.deployment.tables import PendingReservation, Table

READY, STARTING = endpoint_pb2.ENDPOINT_STATE_READY, endpoint_pb2.ENDPOINT_STATE_STARTING
FAILED, STOPPED = endpoint_pb2.ENDPOINT_STATE_FAILED, endpoint_pb2.ENDPOINT_STATE_STOPPED
Eventually = Callable[..., Any]


async def create(deployment: Client, name: str = "wdbc", workspace: str = "acme", **fields: Any) -> endpoint_pb2.Endpoint:
    with acting_for(workspace):
        key = fields.pop("key", "")
        return await deployment.CreateEndpoint(pb.CreateEndpointRequest(name=name, **{"model": "wdbc", **fields}), idempotency_key=key)


async def get(deployment: Client, name: str = "wdbc", workspace: str = "acme") -> endpoint_pb2.Endpoint:
    with acting_for(workspace):
        return await deployment.GetEndpoint(pb.GetEndpointRequest(name=name))


async def replicas(deployment: Client, *states: int) -> list[endpoint_pb2.Replica]:
    with acting_for("acme"):
        found = (await deployment.ListReplicas(pb.ListReplicasRequest(name="wdbc"))).replicas
    return [replica for replica in found if not states or replica.state in states]


async def resolve(deployment: Client, seconds: float = 5.0, name: str = "wdbc") -> pb.ResolveEndpointResponse:
    return await deployment.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name=name, wait_seconds=seconds))


def ready(deployment: Client, count: int = 1) -> Callable[[], Any]:
    async def look() -> endpoint_pb2.Endpoint | None:
        endpoint = await get(deployment)
        return endpoint if endpoint.state == READY and endpoint.ready_replicas == count else None

    return look


async def test_the_migrations_make_the_tables() -> None:
    assert await schema_differences("services.deployment", Table.metadata) == []


async def test_an_endpoint_answers_as_soon_as_it_can(deployment: Client, world: World) -> None:
    made = await create(deployment)
    assert (made.model, made.revision, made.replicas, made.state) == ("wdbc@1", 1, 1, STARTING)
    memory = 256 * 2**20 + 2 * len(b"{}")  # with the model, as long as it is twice in memory
    assert (made.resources.cpu_millis, made.resources.memory_bytes) == (100, memory)
    found = await resolve(deployment)
    [process] = world.launcher.running
    assert found.model == "wdbc@1"
    assert found.replicas[0].url == f"http://127.0.0.1:{40000 + process.pid}"
    assert found.replicas[0].token == process.launch.env["LEPTON_REPLICA_TOKEN"]
    assert process.launch.memory_bytes == memory
    assert process.launch.env["CUDA_VISIBLE_DEVICES"] == "3"
    [asked] = world.compute.asked
    assert asked.workspace == "acme" and asked.holder == f"endpoints/wdbc/replicas/{found.replicas[0].id}"
    assert world.accounts.held == {"endpoints/acme/wdbc"}
    # What was served may be told of at once.
    assert [name for name, _ in await world.events()][:2] == ["EndpointCreated", "EndpointReady"]
    assert (await get(deployment)).state == READY


async def test_names_are_taken_once_and_refusals_store_nothing(deployment: Client, world: World) -> None:
    first = await create(deployment, key="k1")
    assert await create(deployment, key="k1") == first
    with pytest.raises(Conflict, match="there is an endpoint 'wdbc'") as taken:
        await create(deployment)
    assert taken.value.code == "name_taken"
    assert world.accounts.held == {"endpoints/acme/wdbc"}
    with pytest.raises(NotFound):
        await create(deployment, "other", model="nothing")
    with pytest.raises(Invalid, match="name@number"):
        await create(deployment, "other", model="WDBC")
    with pytest.raises(Invalid, match="lower-case"):
        await create(deployment, "No Name")
    with pytest.raises(Invalid, match="no node has 4 gpu") as refused:
        await create(deployment, "other", resources=Resources(accelerator=2, count=4))
    assert refused.value.code == "invalid_spec"
    world.accounts.limit = 1
    with pytest.raises(QuotaExceeded):
        await create(deployment, "other")
    with acting_for("acme"):
        assert [e.name for e in (await deployment.ListEndpoints(pb.ListEndpointsRequest())).endpoints] == ["wdbc"]
    assert world.accounts.held == {"endpoints/acme/wdbc"}


async def test_another_workspace_sees_nothing(deployment: Client) -> None:
    await create(deployment)
    with pytest.raises(NotFound):
        await get(deployment, workspace="evil")
    with acting_for("evil"):
        for call in (
            deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=0)),
            deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc")),
            deployment.ListReplicas(pb.ListReplicasRequest(name="wdbc")),
        ):
            with pytest.raises(NotFound):
                await call
        assert not (await deployment.ListEndpoints(pb.ListEndpointsRequest())).endpoints
    with acting_for("acme", role=ROLE_VIEWER), pytest.raises(Forbidden):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))
    with acting_for("acme", role=ROLE_EDITOR):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))


async def test_pages(deployment: Client, world: World) -> None:
    world.accounts.limit = 9
    for name in ("c", "a", "b"):
        await create(deployment, name, replicas=0)
    with acting_for("acme"):
        page = await deployment.ListEndpoints(pb.ListEndpointsRequest(page_size=2))
        rest = await deployment.ListEndpoints(pb.ListEndpointsRequest(page_size=2, page_token=page.next_page_token))
    assert [e.name for e in [*page.endpoints, *rest.endpoints]] == ["a", "b", "c"]
    assert rest.next_page_token == ""


async def test_the_old_version_serves_until_the_new_one_does(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment)
    old = await resolve(deployment)
    await world.add_model("wdbc@2", b"{2}")
    world.silent = True
    at_once = endpoint_pb2.Rollout(canary_percents=[100], prove_seconds=0)
    with acting_for("acme"):
        updated = await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", model="wdbc", rollout=at_once))
    assert (updated.model, updated.revision, updated.state) == ("wdbc@2", 2, STARTING)

    async def two() -> bool:
        return len(world.launcher.running) == 2

    await eventually(two)
    assert await resolve(deployment) == old
    world.silent = False
    world.answer(world.launcher.running[1])
    await eventually(ready(deployment))
    assert (await resolve(deployment)).model == "wdbc@2"

    async def one() -> bool:
        return len(world.launcher.running) == 1

    await eventually(one)
    assert world.launcher.processes[0].stopped


async def test_replicas_are_added_and_taken_away(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment, replicas=2)
    await eventually(ready(deployment, 2))
    assert len((await resolve(deployment)).replicas) == 2
    with acting_for("acme"):
        await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=3))
        await eventually(ready(deployment, 3))
        changed = await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=0))
    assert (changed.state, changed.revision) == (STOPPED, 1)
    with pytest.raises(Conflict, match="is stopped"):
        await resolve(deployment)

    async def none() -> bool:
        return not world.launcher.running and not world.compute.live

    await eventually(none)


async def test_a_deleted_endpoint_leaves_nothing(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment)
    await resolve(deployment)
    with acting_for("acme"):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))
    assert world.accounts.held == set()
    with pytest.raises(NotFound):
        await resolve(deployment)

    async def none() -> bool:
        return not world.launcher.running and not world.compute.live

    await eventually(none)
    again = await create(deployment)
    assert (await resolve(deployment)).model == "wdbc@1" and again.revision == 1
    assert "EndpointDeleted" in [name for name, _ in await world.events()]


async def test_a_replica_that_dies_is_replaced(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment)
    first = (await resolve(deployment)).replicas[0]
    world.launcher.running[0].exit(Exit(None, 9))
    second = (await resolve(deployment)).replicas[0]
    assert second.id != first.id
    ended = await replicas(deployment, endpoint_pb2.REPLICA_STATE_ENDED)
    assert [(r.id, r.reason) for r in ended] == [(first.id, KILLED)]

    async def released() -> bool:
        return list(world.compute.live) == [f"endpoints/wdbc/replicas/{second.id}"]

    await eventually(released)


async def test_one_that_is_killed_again_and_again_is_replaced_at_once(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment)
    for _ in range(8):
        await eventually(ready(deployment, 1))
        world.launcher.running[0].exit(Exit(None, 9))
        await resolve(deployment)
    endpoint = await get(deployment)
    assert (endpoint.state, endpoint.reason) == (READY, "")
    async with world.database.read() as session:
        assert (await repository.get_endpoint(session, "acme", "wdbc")).failures == 0


async def test_a_crash_loop_is_said_and_slows_down(deployment: Client, world: World, eventually: Eventually, monkeypatch: Any) -> None:
    monkeypatch.setattr("services.deployment.handlers.replicas.pause_after", lambda failures: 0.0 if failures < 5 else 3600.0)
    world.silent = True

    def crash(process: Any) -> None:
        Path(process.launch.stderr).write_text("error: model.json cannot be read\n")
        process.exit(Exit(3))

    world.launcher.on_start = crash
    await create(deployment)

    async def failed() -> endpoint_pb2.Endpoint | None:
        endpoint = await get(deployment)
        return endpoint if endpoint.state == FAILED else None

    endpoint = await eventually(failed)
    assert endpoint.error.code == "process_failed"
    assert endpoint.reason == "tried 5 times; the replica ended: exit code 3; it said: error: model.json cannot be read"
    assert len(world.launcher.processes) == 5
    with pytest.raises(Conflict, match=r"has failed: tried 5 times"):
        await resolve(deployment)
    world.silent, world.launcher.on_start = False, world.answer
    await world.add_model("wdbc@2", b"{2}")
    with acting_for("acme"):
        await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", model="wdbc@2"))
    assert (await resolve(deployment)).model == "wdbc@2"
    assert not (await get(deployment)).HasField("error")


async def test_too_little_memory_is_said_in_words(deployment: Client, world: World, eventually: Eventually) -> None:
    world.launcher.on_start = lambda process: process.exit(Exit(None, 9, oom=True))
    await create(deployment)

    async def told() -> bool:
        return (await get(deployment)).error.code == "out_of_memory"

    await eventually(told)
    assert "more resources.memory_bytes" in (await get(deployment)).reason


async def test_what_waits_says_for_what(deployment: Client, world: World, eventually: Eventually, embedded: Embedded) -> None:
    world.compute.waiting = "waits for 0.1 of a core: node n1 is cordoned"
    await create(deployment)

    async def told() -> bool:
        return (await get(deployment)).reason == world.compute.waiting

    await eventually(told)
    with pytest.raises(AppError, match=r"not ready yet: waits for 0\.1 of a core") as late:
        await resolve(deployment, 0.05)
    assert late.value.code == "deadline_exceeded"
    world.compute.waiting = ""
    embedded.reconciler.wake()
    await resolve(deployment)


async def test_what_waits_can_be_deleted(deployment: Client, world: World, eventually: Eventually) -> None:
    world.compute.waiting = "waits"
    await create(deployment)

    async def asked() -> bool:
        return bool(world.compute.asked)

    await eventually(asked)
    with acting_for("acme"):
        await deployment.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))

    async def none() -> bool:
        return not world.compute.live

    await eventually(none)
    assert world.launcher.processes == []


async def test_a_lost_allocation_ends_what_runs_under_it(
    deployment: Client, world: World, eventually: Eventually, embedded: Embedded
) -> None:
    await create(deployment)
    first = (await resolve(deployment)).replicas[0]
    lost = allocation_pb2.Allocation(
        id=next(iter(world.compute.live.values())),
        workspace="acme",
        holder=f"endpoints/wdbc/replicas/{first.id}",
        state=allocation_pb2.ALLOCATION_STATE_EXPIRED,
    )
    reaction = consumers.reactions(embedded.reconciler.wake, lambda: None)[AllocationEnded]
    async with world.database.unit() as unit:
        await reaction(unit, AllocationEnded(allocation=lost))
    assert (await resolve(deployment)).replicas[0].id != first.id

    async def one() -> bool:
        return len(world.launcher.running) == 1

    await eventually(one)
    assert world.launcher.processes[0].stopped
    assert (await get(deployment)).state == READY


async def test_leases_are_renewed_and_deaf_replicas_replaced(world: World, tmp_path: Path, eventually: Eventually) -> None:
    embedded = world.embedded(probe_seconds=0.02)
    await embedded.start()
    async with serving(world, embedded, tmp_path) as deployment:
        await create(deployment)
        first = (await resolve(deployment)).replicas[0].id

        async def renewed() -> bool:
            return world.compute.renewed > 2

        await eventually(renewed)
        world.healthy = False

        async def replaced() -> list[str]:
            return [r.reason for r in await replicas(deployment, endpoint_pb2.REPLICA_STATE_ENDED) if r.id == first]

        assert await eventually(replaced) == ["the replica did not answer 3 health checks in a row"]
        world.healthy = True
        await resolve(deployment)
        world.compute.expired = set(world.compute.live.values())

        async def over() -> bool:
            return any("allocation is over" in r.reason for r in await replicas(deployment))

        await eventually(over)
    await embedded.stop()


async def test_after_a_crash_of_the_platform_replicas_start_again(world: World, tmp_path: Path, eventually: Eventually) -> None:
    dead = world.embedded(leader_lease_seconds=0.2)
    await dead.start()
    async with serving(world, dead, tmp_path) as deployment:
        await create(deployment, replicas=2)
        await eventually(ready(deployment, 2))
    before = {str(process.handle) for process in world.launcher.running}
    await dead.crash()
    world.launcher.leftovers = set(before)
    embedded = world.embedded()
    await embedded.start()
    assert world.launcher.leftovers == set()
    async with serving(world, embedded, tmp_path) as deployment:
        found = await resolve(deployment)
        await eventually(ready(deployment, 2))
        assert len(await replicas(deployment, endpoint_pb2.REPLICA_STATE_ENDED)) == 2
        assert found.model == "wdbc@1"
        assert (await get(deployment)).state == READY
    await embedded.stop()


async def test_one_instance_plans_and_another_goes_on(world: World, tmp_path: Path, eventually: Eventually) -> None:
    first, second = world.embedded(), world.embedded(work_dir=str(tmp_path / "second"))
    await first.start()
    await second.start()
    async with serving(world, second, tmp_path) as deployment:
        await create(deployment)
        assert len((await resolve(deployment)).replicas) == 1
        assert len(world.launcher.processes) == 1
        await first.stop()
        assert world.launcher.running == []
        await eventually(ready(deployment))
        assert len(world.launcher.processes) == 2
    await second.stop()


async def test_stop_ends_replicas_and_gives_back_what_they_held(world: World, tmp_path: Path) -> None:
    embedded = world.embedded()
    await embedded.start()
    async with serving(world, embedded, tmp_path) as deployment:
        await create(deployment)
        await resolve(deployment)
    await embedded.stop()
    assert world.launcher.running == [] and world.compute.live == {}
    async with world.database.read() as session:
        _, live = await repository.live_of_all_workspaces(session)
    assert [(r.state, r.owner, r.token) for r in live] == [(ReplicaState.STARTING, "", "")]


async def test_quota_of_an_endpoint_that_was_not_made_is_given_back(world: World, deployment: Client, monkeypatch: Any) -> None:
    async def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("services.deployment.handlers.endpoints.create_endpoint", crash)
    with pytest.raises(AppError):
        await create(deployment)
    assert world.accounts.held == set()


async def test_a_reservation_left_by_a_crash_is_given_back(world: World, eventually: Eventually, monkeypatch: Any) -> None:
    monkeypatch.setattr("services.deployment.reconciler.STALE_RESERVATION_SECONDS", 0.0)
    world.accounts.held = {"endpoints/acme/lost"}
    async with world.database.unit() as unit:
        await unit.insert(PendingReservation(workspace="acme", endpoint="lost", create_time=0.0))
    reconciler = world.planner()
    await reconciler.start()

    async def released() -> bool:
        return not world.accounts.held

    await eventually(released)
    await reconciler.stop()


async def test_predictions_are_recorded_once(deployment: Client, world: World) -> None:
    records = [pb.PredictionRecord(workspace="acme", endpoint="wdbc", requests=2, rows=7), pb.PredictionRecord(workspace="b", endpoint="x")]
    request = pb.RecordPredictionsRequest(batch_id="b1", records=records)
    await asyncio.gather(*(deployment.RecordPredictions(request) for _ in range(5)))
    [(name, event)] = await world.events()
    assert (name, event.workspace, event.endpoint, event.requests, event.rows) == ("PredictionsServed", "acme", "wdbc", 2, 7)


async def test_a_damaged_package_is_not_served(deployment: Client, world: World, eventually: Eventually) -> None:
    for digest in list(world.store._objects):
        world.store._objects[digest] = (b"something else", 0.0)
    await create(deployment)

    async def told() -> bool:
        return (await get(deployment)).error.code == "invalid_data"

    await eventually(told)
    assert "is damaged" in (await get(deployment)).reason
    assert world.launcher.processes == []
