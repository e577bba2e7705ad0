"""Endpoints that scale, through the service: what gateways report leads to replicas, silence to sleep, and a question wakes."""

from collections.abc import Callable
from typing import Any

import pytest

from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.deployment.v1 import endpoint_pb2
from libs.errors import AppError, Invalid
from libs.rpc import Client, acting_for
from services.deployment import repository
from services.deployment.conftest import World

Eventually = Callable[..., Any]
SLEEPING, READY = endpoint_pb2.ENDPOINT_STATE_SLEEPING, endpoint_pb2.ENDPOINT_STATE_READY


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.deployment.domain.scaling.STABLE_SECONDS", 0.3)


async def create(deployment: Client, name: str = "wdbc", **scaling: Any) -> endpoint_pb2.Endpoint:
    with acting_for("acme"):
        request = pb.CreateEndpointRequest(name=name, model="wdbc@1", scaling=endpoint_pb2.Scaling(**scaling))
        return await deployment.CreateEndpoint(request)


async def resolve(deployment: Client, seconds: float = 5.0) -> pb.ResolveEndpointResponse:
    return await deployment.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=seconds))


async def report(deployment: Client, gateway: str = "g1", **numbers: Any) -> None:
    one = pb.TrafficReport(**{"workspace": "acme", "endpoint": "wdbc", "revision": 1, **numbers})
    await deployment.ReportTraffic(pb.ReportTrafficRequest(gateway=gateway, reports=[one]))


async def scaling(deployment: Client) -> endpoint_pb2.EndpointScaling:
    with acting_for("acme"):
        return await deployment.GetEndpointScaling(pb.GetEndpointScalingRequest(name="wdbc"))


async def get(deployment: Client) -> endpoint_pb2.Endpoint:
    with acting_for("acme"):
        return await deployment.GetEndpoint(pb.GetEndpointRequest(name="wdbc"))


def has(deployment: Client, count: int) -> Callable[[], Any]:
    async def look() -> bool:
        found = await scaling(deployment)
        return found.replicas == found.ready_replicas == count

    return look


async def test_what_gateways_have_in_hand_and_hold_becomes_replicas_and_goes_again(deployment: Client, eventually: Eventually) -> None:
    await create(deployment, min_replicas=1, max_replicas=4, target_in_flight=4)
    await eventually(has(deployment, 1))
    await report(deployment, "g1", in_flight=5.5, requests=20)
    await report(deployment, "g2", in_flight=3.5, waiting=2, requests=9)
    await eventually(has(deployment, 3))
    found = await scaling(deployment)
    assert (found.in_flight, found.waiting) == (9, 2)
    # What the first gateway said alone may have been decided by before.
    assert (found.decisions[0].to_replicas, found.decisions[0].why) == (3, "9.0 requests in hand and 2 held, 4 a replica")
    for gateway in ("g1", "g2"):
        await report(deployment, gateway)
    await eventually(has(deployment, 1))
    last = (await scaling(deployment)).decisions[0]
    assert (last.from_replicas, last.to_replicas) == (3, 1) and "needed no more" in last.why


async def test_one_that_nobody_asks_sleeps_and_a_question_wakes_it(deployment: Client, world: World, eventually: Eventually) -> None:
    made = await create(deployment, min_replicas=0, max_replicas=2, idle_seconds=1)
    assert (made.replicas, made.scaling.min_replicas, made.scaling.max_replicas, made.scaling.target_in_flight) == (1, 0, 2, 8)
    await resolve(deployment)

    async def asleep() -> bool:
        return (await get(deployment)).state == SLEEPING and not world.launcher.running

    await eventually(asleep)
    assert (await get(deployment)).reason == "nobody asks; the next request starts a replica"
    assert (await scaling(deployment)).decisions[0].why == "nobody asked for 1 s"
    found = await resolve(deployment)
    assert [(share.revision, share.percent) for share in found.shares] == [(1, 100)]
    assert found.replicas[0].revision == 1
    assert (await scaling(deployment)).decisions[0].why == "a request waits for a replica"
    assert len(world.launcher.running) == 1


async def test_a_question_that_does_not_wait_wakes_it_too(deployment: Client, world: World, eventually: Eventually) -> None:
    await create(deployment, min_replicas=0, max_replicas=1, idle_seconds=1)

    async def asleep() -> bool:
        return (await get(deployment)).state == SLEEPING and not world.launcher.running

    await eventually(asleep)
    world.silent = True
    with pytest.raises(AppError, match="is not ready yet") as late:
        await resolve(deployment, 0)
    assert late.value.code == "deadline_exceeded"
    # It starts for as long as it takes: idleness counts from when it is ready.
    assert (await get(deployment)).replicas == 1
    world.silent = False

    async def started() -> bool:
        return bool(world.launcher.running)

    await eventually(started)
    world.answer(world.launcher.running[0])
    await eventually(has(deployment, 1))


async def test_requests_keep_it_awake(deployment: Client, eventually: Eventually) -> None:
    await create(deployment, min_replicas=0, max_replicas=1, idle_seconds=1)
    await eventually(has(deployment, 1))

    async def long_ready() -> bool:
        await report(deployment, requests=1)
        with acting_for("acme"):
            [replica] = (await deployment.ListReplicas(pb.ListReplicasRequest(name="wdbc"))).replicas
        return (await scaling(deployment)).last_request_time.ToNanoseconds() - replica.ready_time.ToNanoseconds() > 2e9

    await eventually(long_ready)
    assert not (await scaling(deployment)).decisions


async def test_bounds_hold_at_once_and_a_fixed_number_ends_scaling(deployment: Client, eventually: Eventually) -> None:
    await create(deployment, min_replicas=1, max_replicas=2)
    with acting_for("acme"):
        more = endpoint_pb2.Scaling(min_replicas=3, max_replicas=4)
        assert (await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", scaling=more))).replicas == 3
        fixed = await deployment.UpdateEndpoint(pb.UpdateEndpointRequest(name="wdbc", replicas=1))
    assert (fixed.replicas, fixed.scaling.min_replicas, fixed.scaling.max_replicas, fixed.revision) == (1, 1, 1, 1)
    await eventually(has(deployment, 1))
    await report(deployment, in_flight=1000)
    assert (await scaling(deployment)).replicas == 1


async def test_what_cannot_be_is_refused_with_words(deployment: Client) -> None:
    with pytest.raises(Invalid, match="must be at least min_replicas, 3"):
        await create(deployment, min_replicas=3, max_replicas=2)
    with acting_for("acme"), pytest.raises(Invalid, match="short for scaling"):
        both = pb.CreateEndpointRequest(name="wdbc", model="wdbc@1", replicas=1, scaling=endpoint_pb2.Scaling(max_replicas=2))
        await deployment.CreateEndpoint(both)
    with pytest.raises(Invalid, match="at most 100"):
        await create(deployment, max_replicas=101)
    with pytest.raises(Invalid, match="at least 0"):
        await report(deployment, in_flight=-1)
    with pytest.raises(Invalid, match="finite"):
        await report(deployment, seconds_sum=float("nan"))
    with pytest.raises(Invalid, match="at most 1000 items"):
        await deployment.ReportTraffic(pb.ReportTrafficRequest(gateway="g", reports=[pb.TrafficReport()] * 1001))


async def test_reports_of_what_is_not_there_change_nothing(deployment: Client, world: World) -> None:
    await create(deployment)
    await report(deployment, workspace="evil", requests=5, in_flight=5)
    await report(deployment, endpoint="other", requests=5, in_flight=5)
    async with world.database.read() as session:
        assert await repository.traffic_of_all_workspaces(session, now=0) == {}
        [revision] = (await repository.revisions_of_all_workspaces(session)).popitem()[1]
    assert revision.requests == 0


async def test_what_a_gateway_says_takes_the_place_of_what_it_said_and_requests_add_up(deployment: Client, world: World) -> None:
    await create(deployment)
    for in_flight in (3.0, 2.0):
        await report(deployment, in_flight=in_flight, requests=5, errors=1, seconds_sum=0.5, p95_seconds=0.25)
    found = await scaling(deployment)
    assert found.in_flight == 2
    with acting_for("acme"):
        [revision] = (await deployment.ListRevisions(pb.ListRevisionsRequest(name="wdbc"))).revisions
    assert (revision.requests, revision.errors, revision.mean_seconds, revision.p95_seconds) == (10, 2, 0.1, 0.25)
    async with world.database.read() as session:
        # Forgotten after a while.
        assert await repository.traffic_of_all_workspaces(session, now=2e10) == {}
