"""A new model takes over from the old one through the service: grown, taken back, shadowing, split by hand."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete

from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.deployment.v1 import endpoint_pb2
from libs.errors import Conflict, Invalid
from libs.launcher import Exit, InMemoryProcess
from libs.rpc import Client, acting_for
from services.deployment.conftest import Embedded, World
from services.deployment.tables import Revision

Eventually = Callable[..., Any]
STARTING, READY = endpoint_pb2.ENDPOINT_STATE_STARTING, endpoint_pb2.ENDPOINT_STATE_READY
QUICK: dict[str, Any] = {"step_seconds": 0, "prove_seconds": 0}
HELD: dict[str, Any] = {"step_seconds": 3600}


@pytest.fixture
async def served(deployment: Client, world: World) -> Client:
    """The endpoint wdbc serves wdbc@1, and there is wdbc@2 and wdbc@3."""
    await world.add_model("wdbc@2", b"{2}")
    await world.add_model("wdbc@3", b"{3}")
    with acting_for("acme"):
        await deployment.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
    await resolve(deployment)
    return deployment


async def update(deployment: Client, model: str = "", *, traffic: dict[int, int] | None = None, **rollout: Any) -> endpoint_pb2.Endpoint:
    split = [pb.RevisionPercent(revision=revision, percent=percent) for revision, percent in (traffic or {}).items()]
    request = pb.UpdateEndpointRequest(name="wdbc", traffic=split)
    if model:
        request.model = model
    if rollout:
        request.rollout.MergeFrom(endpoint_pb2.Rollout(**rollout))
    with acting_for("acme"):
        return await deployment.UpdateEndpoint(request)


async def resolve(deployment: Client) -> pb.ResolveEndpointResponse:
    return await deployment.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=5))


async def shares(deployment: Client) -> dict[int, int]:
    return {share.revision: share.percent for share in (await resolve(deployment)).shares if not share.shadow}


async def get(deployment: Client) -> endpoint_pb2.Endpoint:
    with acting_for("acme"):
        return await deployment.GetEndpoint(pb.GetEndpointRequest(name="wdbc"))


async def revisions(deployment: Client) -> dict[int, endpoint_pb2.Revision]:
    with acting_for("acme"):
        found = (await deployment.ListRevisions(pb.ListRevisionsRequest(name="wdbc"))).revisions
    return {revision.number: revision for revision in found}


async def states(deployment: Client) -> dict[int, str]:
    found = await revisions(deployment)
    return {number: endpoint_pb2.RevisionState.Name(each.state).removeprefix("REVISION_STATE_").lower() for number, each in found.items()}


async def report(deployment: Client, revision: int, **numbers: Any) -> None:
    one = pb.TrafficReport(workspace="acme", endpoint="wdbc", revision=revision, **numbers)
    await deployment.ReportTraffic(pb.ReportTrafficRequest(gateway="g1", reports=[one]))


def become(deployment: Client, expected: dict[int, str]) -> Callable[[], Any]:
    async def look() -> bool:
        return await states(deployment) == expected

    return look


async def test_it_takes_over_by_steps_and_the_old_one_stays_until_it_is_proven(
    served: Client, world: World, embedded: Embedded, eventually: Eventually
) -> None:
    updated = await update(served, "wdbc@2", canary_percents=[20, 100], step_seconds=0.5, prove_seconds=0.5)
    assert (updated.model, updated.revision, updated.state) == ("wdbc@2", 2, STARTING)
    await eventually(become(served, {1: "active", 2: "canary"}))
    found = await resolve(served)
    assert {share.revision: share.percent for share in found.shares} == {1: 80, 2: 20}
    assert (found.model, sorted(replica.revision for replica in found.replicas)) == ("wdbc@1", [1, 2])
    assert (await get(served)).reason == "wdbc@2 has 20 % of the requests"
    await eventually(become(served, {1: "active", 2: "proving"}))
    assert await shares(served) == {2: 100}
    assert (await get(served)).state == READY
    assert len(world.launcher.running) == 2
    await eventually(become(served, {1: "replaced", 2: "active"}))

    async def one() -> bool:
        return len(world.launcher.running) == 1

    await eventually(one)
    assert (await resolve(served)).model == "wdbc@2"


async def test_one_that_fails_requests_is_taken_back(served: Client, world: World, eventually: Eventually) -> None:
    await update(served, "wdbc@2", **HELD)
    await eventually(become(served, {1: "active", 2: "canary"}))
    await report(served, 1, requests=90, seconds_sum=0.9)
    await report(served, 2, requests=10, errors=5, seconds_sum=0.1)
    await eventually(become(served, {1: "active", 2: "rolled_back"}))
    assert await shares(served) == {1: 100}
    endpoint, found = await get(served), await revisions(served)
    assert (endpoint.model, endpoint.revision, endpoint.state) == ("wdbc@1", 1, READY)
    assert found[2].reason == "5 of 10 requests failed; 5.00% may, and 0.00% did before"
    assert endpoint.reason == f"wdbc@2 was taken back: {found[2].reason}"
    [(_, event)] = [each for each in await world.events() if each[0] == "EndpointRolledBack"]
    assert (event.model, event.revision, event.endpoint.model, event.endpoint.reason) == ("wdbc@2", 2, "wdbc@1", endpoint.reason)

    async def one() -> bool:
        return len(world.launcher.running) == 1

    await eventually(one)
    # The same model again is a new try.
    assert (await update(served, "wdbc@2", canary_percents=[100], **QUICK)).revision == 3
    await eventually(become(served, {1: "replaced", 2: "rolled_back", 3: "active"}))
    assert (await get(served)).reason == ""


async def test_one_that_is_slow_is_taken_back_even_with_all_requests(served: Client, eventually: Eventually) -> None:
    await update(served, "wdbc@2", canary_percents=[50, 100], step_seconds=0.3, prove_seconds=3600)
    await eventually(become(served, {1: "active", 2: "canary"}))
    await report(served, 1, requests=50, seconds_sum=0.5)
    await eventually(become(served, {1: "active", 2: "proving"}))
    await report(served, 2, requests=50, seconds_sum=5)
    await eventually(become(served, {1: "active", 2: "rolled_back"}))
    assert (await get(served)).reason == "wdbc@2 was taken back: a request takes 100 ms and took 10 ms before"


async def test_one_that_hangs_while_it_starts_is_taken_back(served: Client, world: World, eventually: Eventually) -> None:
    world.launcher.on_start = lambda process: None
    await update(served, "wdbc@2", start_seconds=1)
    await eventually(become(served, {1: "active", 2: "rolled_back"}))
    endpoint = await get(served)
    assert (endpoint.model, endpoint.state, endpoint.ready_replicas) == ("wdbc@1", READY, 1)
    assert endpoint.reason.startswith("wdbc@2 was taken back: its first replica was not ready within 1 s")

    async def one() -> bool:
        return len(world.launcher.running) == 1

    await eventually(one)


async def test_one_that_does_not_start_is_taken_back(served: Client, world: World, eventually: Eventually) -> None:
    def crash(process: InMemoryProcess) -> None:
        process.exit(Exit(3))

    world.launcher.on_start = crash
    await update(served, "wdbc@2")
    await eventually(become(served, {1: "active", 2: "rolled_back"}))
    endpoint = await get(served)
    assert (endpoint.model, endpoint.state, endpoint.ready_replicas) == ("wdbc@1", READY, 1)
    assert endpoint.reason == "wdbc@2 was taken back: its replicas failed 2 times: the replica ended: exit code 3"
    assert not endpoint.HasField("error")
    assert await shares(served) == {1: 100}


async def test_the_old_model_starts_again_while_the_new_one_takes_over(served: Client, world: World, eventually: Eventually) -> None:
    await update(served, "wdbc@2", **HELD)
    await eventually(become(served, {1: "active", 2: "canary"}))
    world.launcher.processes[0].exit(Exit(None, 9))

    async def both() -> bool:
        return await shares(served) == {1: 90, 2: 10}

    await eventually(both)
    versions = [process.launch.argv[process.launch.argv.index("--model-version") + 1] for process in world.launcher.processes]
    assert versions == ["1", "2", "1"]


async def test_a_shadow_gets_copies_alone_until_it_is_promoted(served: Client, world: World, eventually: Eventually) -> None:
    updated = await update(served, "wdbc@2", shadow=True)
    assert (updated.model, updated.revision, updated.state) == ("wdbc@1", 1, READY)
    await eventually(become(served, {1: "active", 2: "shadowing"}))
    found = await resolve(served)
    assert [(share.revision, share.percent, share.shadow) for share in found.shares] == [(1, 100, False), (2, 0, True)]
    assert sorted(replica.revision for replica in found.replicas) == [1, 2]
    await report(served, 2, requests=9, errors=9, in_flight=900, shadow_compared=9, shadow_differing=2)
    seen = (await revisions(served))[2]
    assert (seen.shadow_compared, seen.shadow_differing) == (9, 2)
    # Copies are nobody's requests; neither do they take it back.
    with acting_for("acme"):
        assert (await served.GetEndpointScaling(pb.GetEndpointScalingRequest(name="wdbc"))).in_flight == 0
    world.launcher.processes[0].exit(Exit(None, 9))
    assert await shares(served) == {1: 100}
    with pytest.raises(Invalid, match="must grow"):
        await update(served, canary_percents=[5])
    promoted = await update(served, "wdbc@2", canary_percents=[100], **QUICK)
    assert (promoted.model, promoted.revision) == ("wdbc@2", 2)
    await eventually(become(served, {1: "replaced", 2: "active"}))
    with pytest.raises(Invalid, match="nothing to roll out"):
        await update(served, **HELD)


async def test_a_split_by_hand_holds_exactly_or_is_refused(served: Client, eventually: Eventually) -> None:
    with pytest.raises(Conflict, match="revision 2 has no replicas"):
        await update(served, traffic={1: 50, 2: 50})
    with pytest.raises(Invalid, match="in another update"):
        await update(served, "wdbc@2", traffic={1: 100})
    await update(served, "wdbc@2", **HELD)
    await eventually(become(served, {1: "active", 2: "canary"}))
    with pytest.raises(Invalid, match="100 together"):
        await update(served, traffic={1: 50, 2: 51})
    await update(served, traffic={1: 63, 2: 37})
    assert await shares(served) == {1: 63, 2: 37}
    await report(served, 2, requests=100, errors=100)
    assert await states(served) == {1: "active", 2: "split"}
    assert (await get(served)).state == READY
    await update(served, traffic={1: 100})
    assert await states(served) == {1: "active", 2: "rolled_back"}
    assert (await get(served)).reason == "wdbc@2 was taken back: all requests were given to revision 1"
    await update(served, "wdbc@3", **HELD)
    await eventually(become(served, {1: "active", 2: "rolled_back", 3: "canary"}))
    await update(served, traffic={3: 100})
    assert await shares(served) == {3: 100}


async def test_another_update_on_the_way_takes_the_place_of_the_first(served: Client, world: World, eventually: Eventually) -> None:
    await update(served, "wdbc@2", **HELD)
    await eventually(become(served, {1: "active", 2: "canary"}))
    with pytest.raises(Conflict, match="rolled out by other rules"):
        await update(served, "wdbc@2", **QUICK)
    await update(served, "wdbc@3", **HELD)
    await eventually(become(served, {1: "active", 2: "replaced", 3: "canary"}))
    assert await shares(served) == {1: 90, 3: 10}
    # Back to the one that serves: the roll-out is over.
    assert (await update(served, "wdbc@1")).revision == 1
    assert await states(served) == {1: "active", 2: "replaced", 3: "replaced"}

    async def one() -> bool:
        return [process.launch.argv[process.launch.argv.index("--model-version") + 1] for process in world.launcher.running] == ["1"]

    await eventually(one)


async def test_where_nothing_runs_an_update_replaces(served: Client, world: World, eventually: Eventually) -> None:
    with acting_for("acme"):
        await served.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=0))
    with pytest.raises(Conflict, match="compared"):
        await update(served, "wdbc@2", shadow=True)
    await update(served, "wdbc@2")
    assert await states(served) == {1: "replaced", 2: "active"}
    with acting_for("acme"):
        await served.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=1))
    assert (await resolve(served)).model == "wdbc@2"


async def test_an_endpoint_of_the_release_before_gets_the_row_of_its_revision(
    served: Client, world: World, embedded: Embedded, eventually: Eventually
) -> None:
    before = await resolve(served)
    async with world.database.unit() as unit:
        await unit.session.execute(delete(Revision))
    assert await resolve(served) == pb.ResolveEndpointResponse(
        model="wdbc@1", replicas=before.replicas, shares=[pb.RevisionShare(revision=1, percent=100)]
    )
    embedded.reconciler.wake()
    await eventually(become(served, {1: "active"}))
    assert len(world.launcher.processes) == 1


async def test_a_deleted_endpoint_leaves_no_revision_that_anybody_wants(served: Client, world: World) -> None:
    await update(served, "wdbc@2", **HELD)
    with acting_for("acme"):
        await served.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))
        await served.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@2"))
    found = await resolve(served)
    assert (found.model, [(share.revision, share.percent) for share in found.shares]) == ("wdbc@2", [(1, 100)])
