"""Every query of the deployment service."""

from collections.abc import Callable, Sequence

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from libs.db.infrastructure import leases
from libs.errors import NotFound
from services.deployment.domain.states import LIVE, ReplicaState
from services.deployment.tables import Endpoint, PendingReservation, PredictionBatch, Replica

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


async def forget_before(session: AsyncSession, *, replicas: float, batches: float) -> None:
    """Drops replicas that ended before one time, and batches recorded before the other, of all workspaces."""
    ended = delete(Replica).where(Replica.state == ReplicaState.ENDED, Replica.allocation_id == "", col(Replica.end_time) < replicas)
    await session.execute(ended)
    await session.execute(delete(PredictionBatch).where(PredictionBatch.time < batches))


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
