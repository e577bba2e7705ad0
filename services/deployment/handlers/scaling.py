"""What requests, or none of them, do to the number of an endpoint's replicas."""

from collections.abc import Mapping, Sequence

from libs.db import Unit, new_id
from services.deployment import repository
from services.deployment.domain.scaling import Decision, Load
from services.deployment.handlers import replicas
from services.deployment.tables import Endpoint, Revision, ScalingDecision

AWAITED = Decision(1, "a request waits for a replica")


def load_of(revisions: Sequence[Revision], traffic: Mapping[int, Load]) -> Load:
    """What an endpoint's requests need, from the traffic by revision; copies for a shadow are nobody's requests."""
    asked = [load for number, load in traffic.items() if not any(each.number == number and each.rules.shadow for each in revisions)]
    last = max((each.last_request_time for each in revisions), default=0.0)
    return Load(sum(load.in_flight for load in asked), sum(load.waiting for load in asked), last)


async def rescale(unit: Unit, *, seen: Endpoint, decision: Decision, now: float) -> None:
    """Does what was decided, unless the endpoint is no longer as it was `seen`."""
    endpoint = await repository.lock_endpoint(unit.session, seen.workspace, seen.id)
    if (endpoint.replicas, endpoint.bounds, endpoint.delete_time) == (seen.replicas, seen.bounds, None):
        await _rescale(unit, endpoint, decision, now)


async def wake(unit: Unit, *, workspace: str, name: str, now: float) -> None:
    """Somebody asks: an endpoint that sleeps starts a replica."""
    endpoint = await repository.get_endpoint(unit.session, workspace, name, lock=True)
    if not endpoint.sleeps:
        return
    for revision in (await repository.wanted_revisions(unit.session, [endpoint]))[endpoint.id]:
        revision.last_request_time = now
    endpoint.forgive()
    await _rescale(unit, endpoint, AWAITED, now)


async def _rescale(unit: Unit, endpoint: Endpoint, decision: Decision, now: float) -> None:
    row = ScalingDecision(
        id=new_id("sd"),
        endpoint_id=endpoint.id,
        workspace=endpoint.workspace,
        time=now,
        from_replicas=endpoint.replicas,
        to_replicas=decision.replicas,
        why=decision.why,
    )
    await unit.insert(row)
    endpoint.replicas = decision.replicas
    await replicas.reconcile(unit, endpoint, now=now)
