"""What is written about replicas by the reconciler, by the nodes that run them, and by members who want others."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from libs.db import Unit, new_id
from libs.errors import AppError
from services.deployment import repository, wire
from services.deployment.domain.rollout import pause_after, plan, state_of, was_proven
from services.deployment.domain.states import EndpointState, ReplicaState, RevisionState
from services.deployment.handlers import rollouts
from services.deployment.handlers.rollouts import Pair
from services.deployment.tables import Endpoint, Replica, Revision


async def reconcile(unit: Unit, endpoint: Endpoint, *, now: float) -> list[Replica]:
    """Makes the replicas' rows what the endpoint's says; answers those that live. Safe to repeat."""
    await unit.session.flush()
    live = (await repository.live_replicas(unit.session, [endpoint]))[endpoint.id]
    pair, taken_back, beside = None, None, None
    wanted = endpoint.wanted
    if endpoint.delete_time is None:
        pair, taken_back = await rollouts.advance(unit, endpoint, live, now=now)
        wanted, beside = pair.wanted(endpoint, live)
    todo = plan(wanted, [replica.seen for replica in live], now, beside)
    for replica in live:
        if replica.id in todo.drain:
            replica.state = ReplicaState.DRAINING
            replica.reason = _why_it_goes(endpoint, replica)
            replica.hurried = endpoint.delete_time is not None
    if pair:
        live += [await unit.insert(_replica(pair.serving, now)) for _ in range(todo.start)]
    if pair and pair.beside:
        live += [await unit.insert(_replica(pair.beside, now)) for _ in range(todo.start_beside)]
    await settle(unit, endpoint, live, pair, now=now)
    if taken_back:
        await unit.emit(wire.endpoint_rolled_back(endpoint, taken_back, live))
    return live


def _replica(revision: Revision, now: float) -> Replica:
    return Replica(
        id=new_id("rep"),
        endpoint_id=revision.endpoint_id,
        workspace=revision.workspace,
        endpoint=revision.endpoint,
        revision=revision.number,
        model=revision.reference,
        reason="waits for an allocation",
        create_time=now,
    )


async def settle(unit: Unit, endpoint: Endpoint, live: list[Replica], pair: Pair | None, *, now: float) -> None:
    """Says where the endpoint stands, and tells others when it has become ready. `pair`: what it wants, unless it is deleted."""
    ready = [r for r in live if r.state == ReplicaState.READY and r.revision == endpoint.revision]
    if endpoint.failures and any(was_proven(replica.ready_time, now) for replica in ready):
        endpoint.forgive()
    takes_over = pair is not None and pair.takes_over
    before, endpoint.state = endpoint.state, state_of(endpoint.wanted, [replica.seen for replica in live], takes_over=takes_over)
    match endpoint.state:
        case EndpointState.READY:
            endpoint.reason, endpoint.error = await _what_was_taken_back(unit, endpoint), None
        case EndpointState.STOPPED:
            asleep = "nobody asks; the next request starts a replica"
            endpoint.reason, endpoint.error = asleep if endpoint.sleeps else "its number of replicas is 0", None
        case _:
            endpoint.reason = _why_not_ready(endpoint, live, pair)
    if endpoint.state == EndpointState.READY and before != EndpointState.READY and endpoint.delete_time is None:
        await unit.emit(wire.endpoint_ready(endpoint, live))


async def note_waiting(unit: Unit, *, workspace: str, id: str, allocation_id: str, reason: str, now: float) -> None:
    """Its allocation is in the queue, perhaps again."""
    replica = await _unclaimed(unit, workspace, id, allocation_id)
    if replica is None:
        return
    if (replica.reason, replica.allocation_id, replica.node) != (reason, allocation_id, ""):
        replica.place(allocation_id, "", [])
        replica.reason = reason
        await _settle_around(unit, replica, now)


async def note_granted(
    unit: Unit,
    *,
    workspace: str,
    id: str,
    allocation_id: str,
    node: str,
    devices: list[int],
    owner: str,
    expires: float,
    now: float,
) -> Replica | None:
    """Its allocation is on `node`. `owner` runs it from now on, and gets it; where that is empty a process there will take it."""
    replica = await _unclaimed(unit, workspace, id, allocation_id)
    if replica is None:
        return None
    known = (replica.allocation_id, replica.node, replica.devices) == (allocation_id, node, devices)
    replica.place(allocation_id, node, devices)
    if owner:
        replica.claim(owner, expires, now)
        return replica
    if not known:
        replica.reason = f"waits for node {node} to start it"
        await _settle_around(unit, replica, now)
    return None


async def claim(unit: Unit, *, workspace: str, id: str, owner: str, expires: float, now: float) -> tuple[Replica, Revision] | None:
    """`owner` runs it from now on, and what it serves; None where another process was faster, or it is wanted no longer."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica is None or replica.state != ReplicaState.STARTING or replica.owner not in ("", owner) or not replica.node:
        return None
    revision = await _revision_of(unit, replica, now)
    if revision and not replica.owner:
        replica.claim(owner, expires, now)
    return (replica, revision) if revision else None


async def note_started(unit: Unit, *, workspace: str, id: str, owner: str, handle: str) -> bool:
    """Its process runs. False where it is no longer wanted."""
    replica = await _owned(unit, workspace, id, owner)
    if replica is None:
        return False
    replica.handle = handle
    return replica.state == ReplicaState.STARTING


async def note_ready(unit: Unit, *, workspace: str, id: str, owner: str, url: str, token: str, now: float) -> bool:
    """It answers. False where it is no longer wanted."""
    replica = await _owned(unit, workspace, id, owner)
    if replica is None or replica.state != ReplicaState.STARTING:
        return False
    replica.state, replica.reason, replica.url, replica.token, replica.ready_time = ReplicaState.READY, "", url, token, now
    await _reconcile_around(unit, replica, now)
    return True


async def note_ended(
    unit: Unit,
    *,
    workspace: str,
    id: str,
    owner: str,
    reason: str,
    now: float,
    lived: bool = True,
    released: bool = False,
    error: dict[str, Any] | None = None,
) -> None:
    """It is gone, and so is its allocation where that is `released`. Without `lived` nobody knows for how long it has been.

    With an `error` that was its own doing, or the model's: the endpoint tries again, ever more rarely.
    """
    replica = await _owned(unit, workspace, id, owner)
    if replica:
        if lived:
            await meter(unit, [replica], now=now)
        await _end(unit, replica, reason=reason, now=now, released=released, error=error)


async def meter(unit: Unit, live: Sequence[Replica], *, now: float) -> None:
    """Tells the ready time of these replicas since it was last told; the mark up to which it is told is part of the same transaction."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for replica in live:
        since = replica.ready_time if replica.metered_until is None else replica.metered_until
        if since is not None and now > since:
            seconds[replica.workspace, replica.endpoint] += now - since
            replica.metered_until = now
    await unit.emit(*[wire.replicas_served(workspace, endpoint, spent, now) for (workspace, endpoint), spent in seconds.items()])


async def bury(unit: Unit, *, seen: Replica, reason: str, now: float) -> None:
    """Ends what nobody runs any more, unless its owner has been heard of since it was `seen`."""
    replica = await _owned(unit, seen.workspace, seen.id, seen.owner)
    if replica and (replica.state, replica.lease_expires) == (seen.state, seen.lease_expires):
        await _end(unit, replica, reason=replica.reason if replica.state == ReplicaState.DRAINING else reason, now=now)


async def hand_back(unit: Unit, *, owner: str, reason: str, expires: float, now: float) -> None:
    """Takes all that `owner` runs out of routing; others take their place. It has until `expires` to end them."""
    await repository.renew_leases(unit.session, owner, expires)
    for replica in await repository.live_of_owner(unit.session, owner):
        if replica.state != ReplicaState.DRAINING:
            replica.state, replica.reason = ReplicaState.DRAINING, reason
            await _reconcile_around(unit, replica, now)


async def note_released(unit: Unit, *, workspace: str, id: str, allocation_id: str) -> None:
    """Compute has its allocation back."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica and replica.allocation_id == allocation_id:
        replica.allocation_id = ""


async def on_allocation_lost(unit: Unit, *, workspace: str, allocation_id: str, now: float) -> None:
    """Compute took it back: what runs under it must end at once, and what nobody runs yet asks for another one."""
    replica = await repository.replica_of_allocation(unit.session, workspace, allocation_id)
    if replica is None:
        return
    if replica.state == ReplicaState.STARTING and not replica.owner:
        reason = f"waits for an allocation: node {replica.node} did not start it in time"
        await note_waiting(unit, workspace=workspace, id=replica.id, allocation_id="", reason=reason, now=now)
        return
    replica.state, replica.hurried = ReplicaState.DRAINING, True
    replica.reason = "its allocation was taken back: it was not renewed in time"
    await _reconcile_around(unit, replica, now)


async def _unclaimed(unit: Unit, workspace: str, id: str, allocation_id: str) -> Replica | None:
    """The replica while it wants an allocation; one that has none left to want gives this one back."""
    replica = await repository.find_replica(unit.session, workspace, id)
    if replica is None or replica.owner:
        return None
    if replica.state != ReplicaState.STARTING:
        replica.allocation_id = allocation_id or replica.allocation_id
        return None
    return replica


async def _owned(unit: Unit, workspace: str, id: str, owner: str) -> Replica | None:
    """The replica while it lives and `owner` runs it, or nobody where that is empty."""
    replica = await repository.find_replica(unit.session, workspace, id)
    return replica if replica and replica.owner == owner and replica.state != ReplicaState.ENDED else None


async def _end(
    unit: Unit, replica: Replica, *, reason: str, now: float, released: bool = False, error: dict[str, Any] | None = None
) -> None:
    ready_time, wanted = replica.ready_time, replica.state != ReplicaState.DRAINING
    if released:
        replica.allocation_id = ""
    replica.end(reason or replica.reason, now)
    endpoint = await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id)
    row = endpoint if replica.revision == endpoint.revision else await _revision_of(unit, replica, now)
    if error and wanted and row:
        row.failures = 1 if was_proven(ready_time, now) else row.failures + 1
        row.next_try_time = now + pause_after(row.failures)
        row.error = error
    await reconcile(unit, endpoint, now=now)


async def _reconcile_around(unit: Unit, replica: Replica, now: float) -> None:
    await reconcile(unit, await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id), now=now)


async def _settle_around(unit: Unit, replica: Replica, now: float) -> None:
    endpoint = await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id)
    await unit.session.flush()
    pair = await rollouts.pair_of(unit, endpoint, now=now) if endpoint.delete_time is None else None
    await settle(unit, endpoint, (await repository.live_replicas(unit.session, [endpoint]))[endpoint.id], pair, now=now)


async def _revision_of(unit: Unit, replica: Replica, now: float) -> Revision | None:
    """What it serves; None where nobody wants that any more."""
    endpoint = await repository.lock_endpoint(unit.session, replica.workspace, replica.endpoint_id)
    if endpoint.delete_time is not None:
        return None
    pair = await rollouts.pair_of(unit, endpoint, now=now)
    return next((each for each in (pair.serving, pair.beside) if each and each.number == replica.revision), None)


async def _what_was_taken_back(unit: Unit, endpoint: Endpoint) -> str:
    """Of the newest revision, why it does not serve."""
    last = await repository.last_revisions(unit.session, endpoint, 1)
    return f"{last[0].reference} was taken back: {last[0].reason}" if last and last[0].state == RevisionState.ROLLED_BACK else ""


def _why_it_goes(endpoint: Endpoint, replica: Replica) -> str:
    if endpoint.delete_time is not None:
        return "the endpoint was deleted"
    if replica.revision != endpoint.revision:
        return f"the endpoint serves {endpoint.reference} now"
    return "the endpoint wants fewer replicas"


def _why_not_ready(endpoint: Endpoint, live: list[Replica], pair: Pair | None) -> str:
    """What keeps the wanted revision from answering: the last failure, what its oldest replica waits for, or its roll-out."""
    if endpoint.failures and endpoint.error:
        tries = f"tried {endpoint.failures} times; " if endpoint.failures > 1 else ""
        return f"{tries}{AppError.from_dict(endpoint.error).detail}"
    waiting = [r.reason for r in live if r.revision == endpoint.revision and r.state == ReplicaState.STARTING]
    if pair and pair.beside and pair.beside.percent:
        return f"{pair.beside.reference} has {pair.beside.percent} % of the requests" + (f"; {waiting[0]}" if waiting else "")
    return waiting[0] if waiting else "a replica is about to be started"
