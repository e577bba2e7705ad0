"""What is written about replicas by the reconciler, by those who run them, and by members who want others."""

from typing import Any

from libs.db import Unit, new_id
from libs.errors import AppError
from services.deployment import repository, wire
from services.deployment.domain.rollout import pause_after, plan, state_of, was_proven
from services.deployment.domain.states import EndpointState, ReplicaState
from services.deployment.tables import Endpoint, Replica


async def reconcile(unit: Unit, endpoint: Endpoint, *, now: float) -> list[Replica]:
    """Makes the replicas' rows what the endpoint's says; answers those that live. Safe to repeat."""
    await unit.session.flush()
    live = (await repository.live_replicas(unit.session, [endpoint]))[endpoint.id]
    todo = plan(endpoint.wanted, [replica.seen for replica in live], now)
    for replica in live:
        if replica.id in todo.drain:
            replica.state = ReplicaState.DRAINING
            replica.reason = _why_it_goes(endpoint, replica)
            replica.hurried = endpoint.delete_time is not None
    for _ in range(todo.start):
        replica = Replica(
            id=new_id("rep"),
            endpoint_id=endpoint.id,
            workspace=endpoint.workspace,
            endpoint=endpoint.name,
            revision=endpoint.revision,
            model=endpoint.reference,
            reason="waits for an allocation",
            create_time=now,
        )
        live.append(await unit.insert(replica))
    await settle(unit, endpoint, live, now=now)
    return live


async def settle(unit: Unit, endpoint: Endpoint, live: list[Replica], *, now: float) -> None:
    """Says where the endpoint stands, and tells others when it has become ready."""
    ready = [r for r in live if r.state == ReplicaState.READY and r.revision == endpoint.revision]
    if endpoint.failures and any(was_proven(replica.ready_time, now) for replica in ready):
        endpoint.forgive()
    before, endpoint.state = endpoint.state, state_of(endpoint.wanted, [replica.seen for replica in live])
    match endpoint.state:
        case EndpointState.READY:
            endpoint.reason, endpoint.error = "", None
        case EndpointState.STOPPED:
            endpoint.reason, endpoint.error = "its number of replicas is 0", None
        case _:
            endpoint.reason = _why_not_ready(endpoint, live)
    if endpoint.state == EndpointState.READY and before != EndpointState.READY and endpoint.delete_time is None:
        await unit.emit(wire.endpoint_ready(endpoint, live))


async def note_waiting(unit: Unit, *, workspace: str, id: str, allocation_id: str, reason: str, now: float) -> None:
    """Its allocation is in the queue."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica and replica.state == ReplicaState.STARTING and (replica.reason, replica.allocation_id) != (reason, allocation_id):
        replica.reason, replica.allocation_id = reason, allocation_id
        await _settle_around(unit, replica, now)


async def note_started(unit: Unit, *, workspace: str, id: str, allocation_id: str, node: str, owner: str, handle: str) -> bool:
    """Its process runs. False where it is no longer wanted."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica is None or replica.state == ReplicaState.ENDED:
        return False
    replica.allocation_id, replica.node, replica.owner, replica.handle = allocation_id, node, owner, handle
    if replica.state == ReplicaState.STARTING:
        replica.reason = "its process is on its way"
    return replica.state == ReplicaState.STARTING


async def note_ready(unit: Unit, *, workspace: str, id: str, url: str, token: str, now: float) -> bool:
    """It answers. False where it is no longer wanted."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica is None or replica.state != ReplicaState.STARTING:
        return False
    replica.state, replica.reason, replica.url, replica.token, replica.ready_time = ReplicaState.READY, "", url, token, now
    await _reconcile_around(unit, replica, now)
    return True


async def note_ended(
    unit: Unit, *, workspace: str, id: str, reason: str, now: float, allocation_id: str = "", error: dict[str, Any] | None = None
) -> None:
    """It is gone. With an `error` that was its own doing, or the model's: the endpoint tries again, ever more rarely."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica is None or replica.state == ReplicaState.ENDED:
        return
    ready_time, wanted = replica.ready_time, replica.state != ReplicaState.DRAINING
    replica.allocation_id = allocation_id or replica.allocation_id
    replica.end(reason, now)
    endpoint = await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id)
    if error and wanted and replica.revision == endpoint.revision:
        endpoint.failures = 1 if was_proven(ready_time, now) else endpoint.failures + 1
        endpoint.next_try_time = now + pause_after(endpoint.failures)
        endpoint.error = error
    await reconcile(unit, endpoint, now=now)


async def note_released(unit: Unit, *, workspace: str, id: str, allocation_id: str) -> None:
    """Compute has its allocation back."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica and replica.allocation_id == allocation_id:
        replica.allocation_id = ""


async def on_allocation_lost(unit: Unit, *, workspace: str, allocation_id: str, now: float) -> None:
    """Compute took it back: what runs under it must end at once."""
    replica = await repository.replica_of_allocation(unit.session, workspace, allocation_id)
    if replica is None:
        return
    replica.state, replica.hurried = ReplicaState.DRAINING, True
    replica.reason = "its allocation was taken back: it was not renewed in time"
    await _reconcile_around(unit, replica, now)


async def _reconcile_around(unit: Unit, replica: Replica, now: float) -> None:
    await reconcile(unit, await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id), now=now)


async def _settle_around(unit: Unit, replica: Replica, now: float) -> None:
    endpoint = await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id)
    await unit.session.flush()
    await settle(unit, endpoint, (await repository.live_replicas(unit.session, [endpoint]))[endpoint.id], now=now)


def _why_it_goes(endpoint: Endpoint, replica: Replica) -> str:
    if endpoint.delete_time is not None:
        return "the endpoint was deleted"
    if replica.revision != endpoint.revision:
        return f"the endpoint serves {endpoint.reference} now"
    return "the endpoint wants fewer replicas"


def _why_not_ready(endpoint: Endpoint, live: list[Replica]) -> str:
    """What keeps the wanted revision from answering: the last failure, or what its oldest replica waits for."""
    if endpoint.failures and endpoint.error:
        tries = f"tried {endpoint.failures} times; " if endpoint.failures > 1 else ""
        return f"{tries}{AppError.from_dict(endpoint.error).detail}"
    waiting = [r.reason for r in live if r.revision == endpoint.revision and r.state == ReplicaState.STARTING]
    return waiting[0] if waiting else "a replica is about to be started"
