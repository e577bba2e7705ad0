"""Every query of the deployment service."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sqlalchemy import bindparam, case, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from libs.db.infrastructure import leases
from libs.errors import NotFound
from services.deployment.domain.batch import UNSETTLED, BatchState
from services.deployment.domain.scaling import REPORT_SECONDS, Load
from services.deployment.domain.states import BESIDE, LIVE, ReplicaState, RevisionState
from services.deployment.tables import (
    BatchPrediction,
    Endpoint,
    PendingReservation,
    PredictedPart,
    PredictionBatch,
    Replica,
    Revision,
    ScalingDecision,
    Traffic,
)

LEADER = "replicas"


async def find_endpoint(session: AsyncSession, workspace: str, name: str, *, lock: bool = False) -> Endpoint | None:
    query = select(Endpoint).where(Endpoint.workspace == workspace, Endpoint.name == name, col(Endpoint.delete_time).is_(None))
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def get_endpoint(session: AsyncSession, workspace: str, name: str, *, lock: bool = False) -> Endpoint:
    """Raises NotFound with near names."""
    endpoint = await find_endpoint(session, workspace, name, lock=lock)
    if endpoint is None:
        names = select(Endpoint.name).where(Endpoint.workspace == workspace, col(Endpoint.delete_time).is_(None)).limit(1000)
        raise NotFound.of("endpoint", name, (await session.execute(names)).scalars())
    return endpoint


async def list_endpoints(session: AsyncSession, workspace: str, *, after: str | None, limit: int) -> Sequence[Endpoint]:
    """By name."""
    query = select(Endpoint).where(Endpoint.workspace == workspace, col(Endpoint.delete_time).is_(None)).order_by(Endpoint.name)
    if after is not None:
        query = query.where(Endpoint.name > after)
    return (await session.execute(query.limit(limit))).scalars().all()


async def lock_endpoint(session: AsyncSession, workspace: str, id: str) -> Endpoint:
    """By its id, perhaps a tombstone."""
    query = select(Endpoint).where(Endpoint.workspace == workspace, Endpoint.id == id)
    return (await session.execute(query.with_for_update())).scalar_one()


async def live_replicas(session: AsyncSession, endpoints: Sequence[Endpoint]) -> dict[str, list[Replica]]:
    """Those that have not ended, oldest first, by endpoint id."""
    found: dict[str, list[Replica]] = {endpoint.id: [] for endpoint in endpoints}
    workspaces = {endpoint.workspace for endpoint in endpoints}
    query = select(Replica).where(Replica.workspace.in_(workspaces), Replica.endpoint_id.in_(found), Replica.state.in_(LIVE))
    for replica in (await session.execute(query.order_by(Replica.id))).scalars():
        found[replica.endpoint_id].append(replica)
    return found


async def last_replicas(session: AsyncSession, endpoint: Endpoint, limit: int) -> Sequence[Replica]:
    """Newest first, ended ones too."""
    query = select(Replica).where(Replica.workspace == endpoint.workspace, Replica.endpoint_id == endpoint.id)
    return (await session.execute(query.order_by(Replica.id.desc()).limit(limit))).scalars().all()


async def find_revision(session: AsyncSession, endpoint: Endpoint, number: int) -> Revision | None:
    query = select(Revision).where(Revision.workspace == endpoint.workspace, Revision.endpoint_id == endpoint.id, Revision.number == number)
    return (await session.execute(query)).scalar_one_or_none()


async def last_revisions(session: AsyncSession, endpoint: Endpoint, limit: int) -> Sequence[Revision]:
    """Newest first."""
    query = select(Revision).where(Revision.workspace == endpoint.workspace, Revision.endpoint_id == endpoint.id)
    return (await session.execute(query.order_by(col(Revision.number).desc()).limit(limit))).scalars().all()


async def wanted_revisions(session: AsyncSession, endpoints: Sequence[Endpoint]) -> dict[str, list[Revision]]:
    """The one that serves and the one beside it, oldest first, by endpoint id."""
    found: dict[str, list[Revision]] = {endpoint.id: [] for endpoint in endpoints}
    workspaces, states = {endpoint.workspace for endpoint in endpoints}, (*BESIDE, RevisionState.ACTIVE)
    query = select(Revision).where(Revision.workspace.in_(workspaces), Revision.endpoint_id.in_(found), Revision.state.in_(states))
    for revision in (await session.execute(query.order_by(Revision.endpoint_id, Revision.number))).scalars():
        found[revision.endpoint_id].append(revision)
    return found


async def revisions_of_all_workspaces(session: AsyncSession) -> dict[str, list[Revision]]:
    """As `wanted_revisions`, of endpoints that are not deleted."""
    found: dict[str, list[Revision]] = defaultdict(list)
    query = select(Revision).join(Endpoint, Endpoint.id == Revision.endpoint_id).where(col(Endpoint.delete_time).is_(None))
    query = query.where(Revision.state.in_((*BESIDE, RevisionState.ACTIVE))).order_by(Revision.endpoint_id, Revision.number)
    for revision in (await session.execute(query)).scalars():
        found[revision.endpoint_id].append(revision)
    return found


async def traffic_of_all_workspaces(session: AsyncSession, *, now: float) -> dict[str, dict[int, Load]]:
    """What gateways have in hand now, by endpoint id and revision."""
    found: dict[str, dict[int, Load]] = defaultdict(dict)
    query = select(Traffic.endpoint_id, Traffic.revision, func.sum(Traffic.in_flight), func.sum(Traffic.waiting))
    query = query.where(Traffic.time >= now - REPORT_SECONDS).group_by(Traffic.endpoint_id, Traffic.revision)
    for id, revision, in_flight, waiting in await session.execute(query):
        found[id][revision] = Load(in_flight, waiting)
    return found


async def traffic_of(session: AsyncSession, endpoint: Endpoint, *, now: float) -> dict[int, tuple[Load, float]]:
    """Load, and the longest 95th percentile of the latency, by revision; of the one endpoint, which the caller may see."""
    query = select(Traffic.revision, func.sum(Traffic.in_flight), func.sum(Traffic.waiting), func.max(Traffic.p95_seconds))
    query = query.where(Traffic.endpoint_id == endpoint.id, Traffic.time >= now - REPORT_SECONDS).group_by(Traffic.revision)
    return {revision: (Load(in_flight, waiting), p95) for revision, in_flight, waiting, p95 in await session.execute(query)}


async def endpoint_ids(session: AsyncSession, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """By workspace and name, of those that are not deleted."""
    query = select(Endpoint.workspace, Endpoint.name, Endpoint.id)
    query = query.where(tuple_(Endpoint.workspace, Endpoint.name).in_(set(names)), col(Endpoint.delete_time).is_(None))
    return {(workspace, name): id for workspace, name, id in await session.execute(query)}


async def replace_traffic(session: AsyncSession, rows: Sequence[Traffic]) -> None:
    """What gateways said of these revisions before is over."""
    table = Traffic.__table__
    keys = list(table.primary_key.columns)
    old = delete(table).where(*[column == bindparam(f"old_{column.name}") for column in keys])
    connection = await session.connection()
    await connection.execute(old, [{f"old_{column.name}": getattr(row, column.name) for column in keys} for row in rows])
    await connection.execute(insert(table), [row.model_dump() for row in rows])


async def add_requests(session: AsyncSession, counts: Sequence[Mapping[str, object]], *, now: float) -> None:
    """Adds what was counted of `of_endpoint`, `of_number`: more requests, errors, seconds, compared, differing; `seen`: any at all."""
    table = Revision.__table__
    added = {"requests": "requests", "errors": "errors", "seconds_sum": "seconds", "shadow_compared": "compared"}
    added["shadow_differing"] = "differing"
    change = update(table).where(table.c.endpoint_id == bindparam("of_endpoint"), table.c.number == bindparam("of_number"))
    values = {column: table.c[column] + bindparam(f"more_{name}") for column, name in added.items()}
    values["last_request_time"] = case((bindparam("seen"), now), else_=table.c.last_request_time)
    await (await session.connection()).execute(change.values(values), list(counts))


async def last_decisions(session: AsyncSession, endpoint: Endpoint, limit: int) -> Sequence[ScalingDecision]:
    """Newest first."""
    query = select(ScalingDecision).where(ScalingDecision.workspace == endpoint.workspace, ScalingDecision.endpoint_id == endpoint.id)
    return (await session.execute(query.order_by(col(ScalingDecision.id).desc()).limit(limit))).scalars().all()


async def find_replica(session: AsyncSession, workspace: str, id: str) -> Replica | None:
    query = select(Replica).where(Replica.workspace == workspace, Replica.id == id)
    return (await session.execute(query)).scalar_one_or_none()


async def replica_of_allocation(session: AsyncSession, workspace: str, allocation_id: str) -> Replica | None:
    query = select(Replica).where(Replica.workspace == workspace, Replica.allocation_id == allocation_id, Replica.state.in_(LIVE))
    return (await session.execute(query)).scalar_one_or_none()


async def live_of_all_workspaces(session: AsyncSession) -> tuple[Sequence[Endpoint], Sequence[Replica]]:
    """What the reconciler looks at: endpoints that are not deleted, or have replicas yet; and replicas that live."""
    replicas = (await session.execute(select(Replica).where(Replica.state.in_(LIVE)).order_by(Replica.id))).scalars().all()
    wanted = col(Endpoint.delete_time).is_(None) | Endpoint.id.in_({replica.endpoint_id for replica in replicas})
    return (await session.execute(select(Endpoint).where(wanted))).scalars().all(), replicas


async def seen_by_node_of_all_workspaces(session: AsyncSession, owner: str, node: str) -> Sequence[Replica]:
    """What `owner` runs, and what waits on its node (empty: on any) for somebody to run it; oldest first."""
    free = (Replica.owner == "") & (Replica.state == ReplicaState.STARTING) & (Replica.node == node if node else Replica.node != "")
    query = select(Replica).where(col(Replica.owner).in_(("", owner)), Replica.state.in_(LIVE), (Replica.owner == owner) | free)
    return (await session.execute(query.order_by(Replica.id))).scalars().all()


async def undeleted_of_all_workspaces(session: AsyncSession, ids: Collection[str]) -> Sequence[Endpoint]:
    """Those of these endpoints that are not deleted."""
    query = select(Endpoint).where(Endpoint.id.in_(ids), col(Endpoint.delete_time).is_(None))
    return (await session.execute(query)).scalars().all()


async def live_of_owner(session: AsyncSession, owner: str) -> Sequence[Replica]:
    """What `owner` runs, in all workspaces."""
    query = select(Replica).where(Replica.owner == owner, Replica.state.in_(LIVE))
    return (await session.execute(query.order_by(Replica.id))).scalars().all()


async def renew_leases(session: AsyncSession, owner: str, expires: float) -> None:
    """Of all that `owner` runs."""
    query = update(Replica).where(Replica.owner == owner, Replica.state.in_(LIVE)).values(lease_expires=expires)
    await session.execute(query)


async def states_of_all_workspaces(session: AsyncSession) -> tuple[dict[str, int], dict[str, int]]:
    """How many endpoints that are not deleted, and how many replicas that have not ended, are in each."""
    endpoints = select(Endpoint.state, func.count()).where(col(Endpoint.delete_time).is_(None)).group_by(Endpoint.state)
    replicas = select(Replica.state, func.count()).where(Replica.state.in_(LIVE)).group_by(Replica.state)
    found = [{row[0]: row[1] for row in await session.execute(query)} for query in (endpoints, replicas)]
    return found[0], found[1]


async def unreleased_of_all_workspaces(session: AsyncSession, limit: int = 100) -> Sequence[Replica]:
    """Ended ones whose allocation is not given back yet."""
    query = select(Replica).where(Replica.state == ReplicaState.ENDED, Replica.allocation_id != "")
    return (await session.execute(query.limit(limit))).scalars().all()


async def stale_reservations_of_all_workspaces(session: AsyncSession, before: float) -> Sequence[PendingReservation]:
    return (await session.execute(select(PendingReservation).where(PendingReservation.create_time < before))).scalars().all()


async def delete_reservation(session: AsyncSession, workspace: str, endpoint: str) -> bool:
    """Whether there was one."""
    query = delete(PendingReservation).where(PendingReservation.workspace == workspace, PendingReservation.endpoint == endpoint)
    return bool((await session.execute(query)).rowcount)


async def is_recorded(session: AsyncSession, batch_id: str) -> bool:
    """Batches are the gateways', of no one workspace."""
    return await session.get(PredictionBatch, batch_id) is not None


async def forget_before(session: AsyncSession, *, replicas: float, batches: float, revisions: float) -> None:
    """Drops of all workspaces replicas that ended, batches recorded and revisions left before these times.

    Decisions go with the replicas; what gateways said goes when it says nothing any more.
    """
    ended = delete(Replica).where(Replica.state == ReplicaState.ENDED, Replica.allocation_id == "", col(Replica.end_time) < replicas)
    await session.execute(ended)
    await session.execute(delete(PredictionBatch).where(PredictionBatch.time < batches))
    await session.execute(delete(ScalingDecision).where(ScalingDecision.time < replicas))
    await session.execute(delete(Traffic).where(Traffic.time < replicas))
    over = col(Revision.state).in_((RevisionState.REPLACED, RevisionState.ROLLED_BACK))
    await session.execute(delete(Revision).where(over, Revision.change_time < revisions))


async def lead(session: AsyncSession, holder: str, *, now: float, seconds: float, is_dead: Callable[[str], bool]) -> bool:
    """Takes or keeps the lease to plan; a holder that is known to be dead loses it before its time."""
    row = (await session.execute(select(leases).where(leases.c.name == LEADER))).first()
    if row is None:
        await session.execute(insert(leases).values(name=LEADER, holder=holder, token=1, expires=now + seconds))
        return True
    if row.holder != holder and row.expires > now and not is_dead(row.holder):
        return False
    token = row.token + (row.holder != holder)
    changed = await session.execute(
        update(leases)
        .where(leases.c.name == LEADER, leases.c.holder == row.holder, leases.c.token == row.token)
        .values(holder=holder, token=token, expires=now + seconds)
    )
    return bool(changed.rowcount)


async def resign(session: AsyncSession, holder: str) -> None:
    """Gives the lease back; the token goes on growing."""
    await session.execute(update(leases).where(leases.c.name == LEADER, leases.c.holder == holder).values(expires=0.0))


# Batch predictions


async def find_batch(session: AsyncSession, workspace: str, id: str, *, lock: bool = False) -> BatchPrediction | None:
    query = select(BatchPrediction).where(BatchPrediction.workspace == workspace, BatchPrediction.id == id)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def get_batch(session: AsyncSession, workspace: str, id: str, *, lock: bool = False) -> BatchPrediction:
    """Raises NotFound, also for one that is not made yet."""
    found = await find_batch(session, workspace, id, lock=lock)
    if found is None or found.state == BatchState.RESERVING:
        raise NotFound.of("batch prediction", id[:60])
    return found


async def list_batches(session: AsyncSession, workspace: str, *, before: str | None, limit: int) -> Sequence[BatchPrediction]:
    """Newest first."""
    query = select(BatchPrediction).where(BatchPrediction.workspace == workspace, BatchPrediction.state != BatchState.RESERVING)
    if before is not None:
        query = query.where(BatchPrediction.id < before)
    return (await session.execute(query.order_by(BatchPrediction.id.desc()).limit(limit))).scalars().all()


async def count_open_batches(session: AsyncSession, workspace: str) -> int:
    query = select(func.count()).where(BatchPrediction.workspace == workspace, BatchPrediction.state.in_(UNSETTLED))
    return int((await session.execute(query)).scalar_one())


async def unsettled_batches_of_all_workspaces(session: AsyncSession) -> Sequence[BatchPrediction]:
    """Those that have not ended, and ended ones that hold something; oldest first."""
    holds = (col(BatchPrediction.allocation_id) != "") | col(BatchPrediction.quota_held)
    query = select(BatchPrediction).where(BatchPrediction.state.in_(UNSETTLED) | holds).order_by(BatchPrediction.id)
    return (await session.execute(query)).scalars().all()


async def claimable_batches_of_all_workspaces(session: AsyncSession, node: str, now: float) -> Sequence[BatchPrediction]:
    """Those that wait for a worker on `node` (empty: on any)."""
    query = select(BatchPrediction).where(BatchPrediction.state == BatchState.QUEUED, BatchPrediction.not_before <= now)
    query = query.where(BatchPrediction.node == node if node else BatchPrediction.node != "")
    return (await session.execute(query.order_by(BatchPrediction.id))).scalars().all()


async def batches_held(session: AsyncSession, holder: str) -> Sequence[BatchPrediction]:
    """What `holder` runs, in all workspaces."""
    return (await session.execute(select(BatchPrediction).where(BatchPrediction.lease_holder == holder))).scalars().all()


async def batch_of_allocation(session: AsyncSession, workspace: str, allocation_id: str) -> BatchPrediction | None:
    query = select(BatchPrediction).where(BatchPrediction.workspace == workspace, BatchPrediction.allocation_id == allocation_id)
    return (await session.execute(query.with_for_update())).scalar_one_or_none()


async def parts(session: AsyncSession, batch: BatchPrediction) -> Sequence[PredictedPart]:
    """In the order of their rows."""
    query = select(PredictedPart).where(PredictedPart.workspace == batch.workspace, PredictedPart.batch_prediction_id == batch.id)
    return (await session.execute(query.order_by(col(PredictedPart.number)))).scalars().all()


async def delete_parts(session: AsyncSession, batch: BatchPrediction) -> None:
    """Their objects are swept once nothing names them."""
    where = (PredictedPart.workspace == batch.workspace, PredictedPart.batch_prediction_id == batch.id)
    await session.execute(delete(PredictedPart).where(*where))


async def unnamed_of_all_workspaces(session: AsyncSession, digests: Sequence[str]) -> list[str]:
    """Those that are no part of a batch prediction."""
    named = set((await session.execute(select(PredictedPart.digest).where(PredictedPart.digest.in_(digests)))).scalars())
    return [digest for digest in digests if digest not in named]
