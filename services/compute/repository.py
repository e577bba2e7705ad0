"""Every query of the compute service."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from services.compute.tables import GRANTED, LIVE, QUEUED, Allocation, Node


async def nodes(session: AsyncSession, *, after: str | None = None, limit: int | None = None) -> Sequence[Node]:
    """By name. Nodes belong to the platform, not to a workspace."""
    query = select(Node).order_by(Node.name)
    if after is not None:
        query = query.where(Node.name > after)
    return (await session.execute(query.limit(limit))).scalars().all()


async def node(session: AsyncSession, name: str) -> Node | None:
    return await session.get(Node, name)


async def live(session: AsyncSession) -> Sequence[Allocation]:
    """Queued and granted ones of every workspace: what the scheduler looks at."""
    return (await session.execute(select(Allocation).where(Allocation.state.in_(LIVE)))).scalars().all()


async def forget_nodes(session: AsyncSession, before: float) -> None:
    """Drops lost nodes that were last heard of before then, and on which nothing lives."""
    held = select(Allocation.node).where(Allocation.state == GRANTED)
    gone = delete(Node).where(col(Node.lost).is_(True), Node.heartbeat_time < before, col(Node.name).not_in(held))
    await session.execute(gone)


async def granted(session: AsyncSession) -> Sequence[Allocation]:
    """Those that hold a lease, of every workspace."""
    return (await session.execute(select(Allocation).where(Allocation.state == GRANTED))).scalars().all()


async def live_counts(session: AsyncSession) -> Sequence[tuple[str, str, int, int]]:
    """State, pool (empty while queued), how many allocations of every workspace, and how many thousandths of cores they ask for."""
    pool = func.coalesce(Node.pool, "")
    query = select(Allocation.state, pool, func.count(), func.sum(Allocation.cpu_millis * Allocation.workers)).outerjoin(
        Node, Node.name == Allocation.node
    )
    rows = await session.execute(query.where(Allocation.state.in_(LIVE)).group_by(Allocation.state, pool))
    return [(row[0], row[1], row[2], int(row[3])) for row in rows]


async def longest_queued_since(session: AsyncSession) -> float | None:
    return (await session.execute(select(func.min(Allocation.create_time)).where(Allocation.state == QUEUED))).scalar_one()


async def live_of_holder(session: AsyncSession, workspace: str, holder: str) -> Allocation | None:
    query = select(Allocation).where(Allocation.workspace == workspace, Allocation.holder == holder, Allocation.state.in_(LIVE))
    return (await session.execute(query)).scalar_one_or_none()


async def allocation(session: AsyncSession, id: str, workspace: str | None = None) -> Allocation | None:
    """`workspace` None: a service asks, by an id that it was given."""
    query = select(Allocation).where(Allocation.id == id)
    if workspace is not None:
        query = query.where(Allocation.workspace == workspace)
    return (await session.execute(query)).scalar_one_or_none()


async def allocations_by_id(session: AsyncSession, ids: Sequence[str]) -> Sequence[Allocation]:
    """Of whatever workspace: a service asks, by ids that it was given."""
    return (await session.execute(select(Allocation).where(col(Allocation.id).in_(ids)))).scalars().all()


async def allocations(session: AsyncSession, workspace: str, *, state: str, before: str | None, limit: int) -> Sequence[Allocation]:
    """Newest first; `before` is the id that a page ended with."""
    query = select(Allocation).where(Allocation.workspace == workspace).order_by(Allocation.id.desc())
    if state:
        query = query.where(Allocation.state == state)
    if before is not None:
        query = query.where(Allocation.id < before)
    return (await session.execute(query.limit(limit))).scalars().all()
