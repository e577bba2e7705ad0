"""What members do with endpoints."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from libs.db import Unit, new_id
from libs.errors import Conflict, Invalid, Transient, Violation
from services.deployment import repository, wire
from services.deployment.domain.resources import Needs
from services.deployment.domain.rollout import Rollout
from services.deployment.domain.scaling import Scaling
from services.deployment.domain.states import EndpointState, RevisionState
from services.deployment.handlers import replicas, rollouts
from services.deployment.handlers.served import Served
from services.deployment.tables import Endpoint, Replica


@dataclass(frozen=True)
class Changes:
    """What an update asks for; None, and no traffic: as it is."""

    served: Served | None = None
    scaling: Scaling | None = None
    rollout: Rollout | None = None
    traffic: Sequence[tuple[int, int]] = ()


async def require_free(unit: Unit, *, workspace: str, name: str) -> None:
    """Raises Conflict where the name is taken."""
    if await repository.find_endpoint(unit.session, workspace, name):
        raise _taken(name)


async def create_endpoint(
    unit: Unit, *, workspace: str, name: str, served: Served, scaling: Scaling, needs: Needs, traceparent: str, now: float
) -> tuple[Endpoint, list[Replica]]:
    """Stores it, with the replicas that it wants; the reservation of its quota becomes its own."""
    if not await repository.delete_reservation(unit.session, workspace, name):
        raise Transient("making the endpoint took too long; try again")
    complete_needs = served.complete(needs)
    endpoint = Endpoint(
        id=new_id("ep"),
        workspace=workspace,
        name=name,
        model=served.model,
        model_version=served.number,
        files=served.files,
        replicas=scaling.bounded(1),
        bounds=asdict(scaling) if scaling.least != scaling.most else None,
        resources=asdict(needs),
        accelerator=complete_needs.accelerator,
        device_count=complete_needs.count,
        cpu_millis=complete_needs.cpu_millis,
        memory_bytes=complete_needs.memory_bytes,
        state=EndpointState.STARTING if scaling.most else EndpointState.STOPPED,
        create_time=now,
        update_time=now,
        traceparent=traceparent,
    )
    await unit.insert(endpoint, taken=_taken(name))
    live = await replicas.reconcile(unit, endpoint, now=now)
    await unit.emit(wire.endpoint_created(endpoint, live))
    return endpoint, live


async def update_endpoint(
    unit: Unit, *, workspace: str, name: str, changes: Changes, traceparent: str, now: float
) -> tuple[Endpoint, list[Replica]]:
    """Another model version is another revision, which takes over from the one that serves; all that is asked for, or nothing."""
    if changes.served and changes.traffic:
        raise Invalid.of([Violation("traffic", "a new model has no ready replica yet; split the requests in another update")])
    endpoint = await repository.get_endpoint(unit.session, workspace, name, lock=True)
    live = (await repository.live_replicas(unit.session, [endpoint]))[endpoint.id]
    changed, taken_back = False, None
    if changes.served:
        changed = await rollouts.change_model(unit, endpoint, changes.served, changes.rollout, live, traceparent=traceparent, now=now)
    elif changes.rollout:
        changed = await rollouts.change_rollout(unit, endpoint, changes.rollout, now=now)
    if changes.traffic:
        taken_back = await rollouts.split(unit, endpoint, changes.traffic, live, now=now)
        changed = True
    if changes.scaling and changes.scaling != endpoint.scaling:
        endpoint.scale(changes.scaling)
        changed = True
    if changed:
        endpoint.forgive()
        endpoint.update_time = now
    live = await replicas.reconcile(unit, endpoint, now=now)
    if changed:
        await unit.emit(wire.endpoint_updated(endpoint, live))
    if taken_back:
        await unit.emit(wire.endpoint_rolled_back(endpoint, taken_back, live))
    return endpoint, live


async def delete_endpoint(unit: Unit, *, workspace: str, name: str, now: float) -> Endpoint:
    """Leaves a tombstone; its replicas end, and its quota is free once accounts hears of it."""
    endpoint = await repository.get_endpoint(unit.session, workspace, name, lock=True)
    endpoint.delete_time = now
    for revision in (await repository.wanted_revisions(unit.session, [endpoint]))[endpoint.id]:
        revision.go(RevisionState.REPLACED, 0, now, "the endpoint was deleted")
    await replicas.reconcile(unit, endpoint, now=now)
    await unit.emit(wire.endpoint_deleted(endpoint))
    return endpoint


def _taken(name: str) -> Conflict:
    return Conflict(f"there is an endpoint '{name}' in this workspace already; update it, or choose another name", code="name_taken")
