"""Every query. What is read to be changed is read under the workspace's lock (`lock_workspace`)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from services.accounts.domain.pricing import EarningLine, Line
from services.accounts.domain.roles import Role
from services.accounts.tables import (
    ApiKey,
    Earning,
    Invoice,
    InvoiceNumber,
    Member,
    Plan,
    Reservation,
    UsageRecord,
    UsageTotal,
    Workspace,
)

STORAGE = "storage_bytes"

# -- plans, workspaces, members


async def plans(session: AsyncSession) -> list[Plan]:
    return list((await session.execute(select(Plan).order_by(Plan.monthly_price, Plan.name))).scalars())


async def lock_plan(session: AsyncSession, name: str) -> Plan | None:
    """Makes others who would change the plan wait."""
    return (await session.execute(select(Plan).where(Plan.name == name).with_for_update())).scalar()


async def workspaces_on(session: AsyncSession, plan: str) -> Sequence[str]:
    """Names of the workspaces on a plan, in the order in which they are locked."""
    return list((await session.execute(select(Workspace.name).where(Workspace.plan == plan).order_by(Workspace.name))).scalars())


async def workspace(session: AsyncSession, name: str) -> Workspace | None:
    return await session.get(Workspace, name)


async def lock_workspace(session: AsyncSession, name: str) -> Workspace | None:
    """Makes others who would change the workspace's members, keys, quotas or invoices wait. SQLite's writers do so by themselves."""
    query = select(Workspace).where(Workspace.name == name).with_for_update().execution_options(populate_existing=True)
    return (await session.execute(query)).scalar()


async def first_workspace(session: AsyncSession) -> Workspace | None:
    return (await session.execute(select(Workspace).where(Workspace.first))).scalar()


async def workspaces_of(
    session: AsyncSession, member: str, after: str | None = None, limit: int = 1000, *, only: str | None = None
) -> list[tuple[Workspace, int]]:
    """Workspaces and the member's role in each, by name; of them `only` one, if that is asked."""
    query = select(Workspace, Member.role).join(Member, Member.workspace == Workspace.name).where(Member.email == member)
    if only is not None:
        query = query.where(Workspace.name == only)
    if after is not None:
        query = query.where(Workspace.name > after)
    return [(found, role) for found, role in await session.execute(query.order_by(Workspace.name).limit(limit))]


async def owned(session: AsyncSession, member: str) -> int:
    """How many workspaces a member owns."""
    return await _number(session, select(func.count()).select_from(Member).where(Member.email == member, Member.role == Role.OWNER))


async def member(session: AsyncSession, workspace: str, email: str) -> Member | None:
    return await session.get(Member, (workspace, email))


async def members(session: AsyncSession, workspace: str, after: str | None = None, limit: int = 1000) -> list[Member]:
    query = select(Member).where(Member.workspace == workspace)
    if after is not None:
        query = query.where(Member.email > after)
    return list((await session.execute(query.order_by(Member.email).limit(limit))).scalars())


async def owners(session: AsyncSession, workspace: str) -> int:
    return await _number(session, select(func.count()).select_from(Member).where(Member.workspace == workspace, Member.role == Role.OWNER))


async def delete_member(session: AsyncSession, row: Member) -> None:
    await session.delete(row)
    await session.flush()


# -- API keys


async def api_key(session: AsyncSession, workspace: str, id: str) -> ApiKey | None:
    return (await session.execute(select(ApiKey).where(ApiKey.workspace == workspace, ApiKey.id == id))).scalar()


async def api_key_by_sha256(session: AsyncSession, sha256: bytes) -> ApiKey | None:
    """The one query that knows no workspace: it is what tells it."""
    return (await session.execute(select(ApiKey).where(ApiKey.sha256 == sha256))).scalar()


async def api_keys(session: AsyncSession, workspace: str, before: str | None = None, limit: int = 1000) -> list[ApiKey]:
    """Newest first, the revoked ones among them."""
    query = select(ApiKey).where(ApiKey.workspace == workspace)
    if before is not None:
        query = query.where(ApiKey.id < before)
    return list((await session.execute(query.order_by(ApiKey.id.desc()).limit(limit))).scalars())


async def live_keys(session: AsyncSession, workspace: str, member: str) -> list[ApiKey]:
    where = (ApiKey.workspace == workspace, ApiKey.member == member, col(ApiKey.revoke_time).is_(None))
    return list((await session.execute(select(ApiKey).where(*where))).scalars())


# -- quotas


async def existing(session: AsyncSession, workspace: str) -> dict[str, int]:
    """How many members and live API keys there are."""
    live = (ApiKey.workspace == workspace, col(ApiKey.revoke_time).is_(None))
    return {
        "members": await _number(session, select(func.count()).select_from(Member).where(Member.workspace == workspace)),
        "api_keys": await _number(session, select(func.count()).select_from(ApiKey).where(*live)),
    }


async def reserved(session: AsyncSession, workspace: str, now: float) -> dict[str, int]:
    """What reservations hold, by metric."""
    query = select(Reservation.metric, func.sum(Reservation.amount)).where(
        Reservation.workspace == workspace, or_(col(Reservation.expire_time).is_(None), col(Reservation.expire_time) > now)
    )
    return {metric: int(amount) for metric, amount in await session.execute(query.group_by(Reservation.metric))}


async def totals(session: AsyncSession, workspace: str, period: str) -> dict[str, int]:
    """Millionths used in a month, by metric."""
    query = select(UsageTotal.metric, UsageTotal.quantity).where(UsageTotal.workspace == workspace, UsageTotal.period == period)
    return {metric: int(quantity) for metric, quantity in await session.execute(query)}


async def reservation(session: AsyncSession, workspace: str, name: str, metric: str) -> Reservation | None:
    return await session.get(Reservation, (workspace, name, metric))


async def use_up(session: AsyncSession, workspace: str, name: str, metric: str, amount: int) -> None:
    """What was used of a reservation is counted as use from now on, and not twice."""
    left = case((col(Reservation.amount) > amount, col(Reservation.amount) - amount), else_=0)
    where = (Reservation.workspace == workspace, Reservation.name == name, Reservation.metric == metric)
    await session.execute(update(Reservation).where(*where).values(amount=left))


async def release(session: AsyncSession, workspace: str, name: str, *, metric: str = "", asked_before: float | None = None) -> None:
    """Deletes a reservation, of one metric or of all. With `asked_before`, not one that was asked for since."""
    await _release(session, Reservation.workspace == workspace, Reservation.name == name, metric=metric, asked_before=asked_before)


async def release_all(session: AsyncSession, workspace: str, prefix: str, *, asked_before: float) -> None:
    """Deletes every reservation whose name begins with `prefix`."""
    starts = col(Reservation.name).startswith(prefix, autoescape=True)
    await _release(session, Reservation.workspace == workspace, starts, asked_before=asked_before)


async def _release(session: AsyncSession, *where: Any, metric: str = "", asked_before: float | None = None) -> None:
    query = delete(Reservation).where(*where)
    if metric:
        query = query.where(Reservation.metric == metric)
    if asked_before is not None:
        query = query.where(Reservation.time <= asked_before)
    await session.execute(query)


async def storage(
    session: AsyncSession, workspace: str, *, settled_before: float, prefix: str = "", asked_before: float | None = None, lock: bool = False
) -> list[Reservation]:
    """Reservations of storage, not settled up to a time; whose names begin with `prefix`."""
    where = [Reservation.workspace == workspace, Reservation.metric == STORAGE, Reservation.settled_time < settled_before]
    if prefix:
        where.append(col(Reservation.name).startswith(prefix, autoescape=True))
    if asked_before is not None:
        where.append(Reservation.time <= asked_before)
    query = select(Reservation).where(*where).order_by(Reservation.name)
    return list((await session.execute(query.with_for_update() if lock else query)).scalars())


async def forget_expired(session: AsyncSession, workspace: str, now: float) -> None:
    """Deletes reservations that count no more."""
    await session.execute(delete(Reservation).where(Reservation.workspace == workspace, col(Reservation.expire_time) <= now))


# -- use and earnings


async def recorded(session: AsyncSession, source: str, event_id: str, metric: str) -> bool:
    return await session.get(UsageRecord, (source, event_id, metric)) is not None


async def add_to_total(session: AsyncSession, workspace: str, period: str, metric: str, quantity: int) -> None:
    where = (UsageTotal.workspace == workspace, UsageTotal.period == period, UsageTotal.metric == metric)
    changed = await session.execute(update(UsageTotal).where(*where).values(quantity=UsageTotal.quantity + quantity))
    if not changed.rowcount:
        session.add(UsageTotal(workspace=workspace, period=period, metric=metric, quantity=quantity))
        await session.flush()


async def lines(session: AsyncSession, workspace: str, *, period: str | None = None, invoice: str | None = None) -> list[Line]:
    """Records summed up by metric, resource and price: of a month, of an invoice ("": of none yet), or of a month and an invoice."""
    key = (UsageRecord.metric, UsageRecord.resource, UsageRecord.unit_price)
    query = select(*key, func.sum(UsageRecord.quantity), func.sum(UsageRecord.amount)).where(UsageRecord.workspace == workspace)
    if period is not None:
        query = query.where(UsageRecord.period == period)
    if invoice is not None:
        query = query.where(UsageRecord.invoice == invoice)
    rows = await session.execute(query.group_by(*key).order_by(*key))
    return [Line(metric, resource, int(quantity), price, int(amount)) for metric, resource, price, quantity, amount in rows]


async def earning_lines(session: AsyncSession, workspace: str, period: str) -> list[EarningLine]:
    """What a publisher's listings brought in, by listing and buyer."""
    sums = [func.sum(column) for column in (Earning.quantity, Earning.gross, Earning.fee, Earning.net)]
    query = select(Earning.listing, Earning.buyer, *sums).where(Earning.workspace == workspace, Earning.period == period)
    rows = await session.execute(query.group_by(Earning.listing, Earning.buyer).order_by(Earning.listing, Earning.buyer))
    return [EarningLine(listing, buyer, *map(int, numbers)) for listing, buyer, *numbers in rows]


# -- invoices


async def open_periods(session: AsyncSession, workspace: str) -> list[str]:
    """Months with records that no invoice holds, oldest first."""
    query = select(UsageRecord.period).where(UsageRecord.workspace == workspace, UsageRecord.invoice == "").distinct()
    return sorted((await session.execute(query)).scalars())


async def put_on_invoice(session: AsyncSession, workspace: str, period: str, number: str) -> None:
    where = (UsageRecord.invoice == "", UsageRecord.workspace == workspace, UsageRecord.period == period)
    await session.execute(update(UsageRecord).where(*where).values(invoice=number).execution_options(synchronize_session=False))


async def invoice(session: AsyncSession, workspace: str, number: str) -> Invoice | None:
    return (await session.execute(select(Invoice).where(Invoice.workspace == workspace, Invoice.number == number))).scalar()


async def invoices(session: AsyncSession, workspace: str, before: str | None = None, limit: int = 1000) -> list[Invoice]:
    """Newest first."""
    query = select(Invoice).where(Invoice.workspace == workspace)
    if before is not None:
        query = query.where(Invoice.id < before)
    return list((await session.execute(query.order_by(Invoice.id.desc()).limit(limit))).scalars())


async def next_invoice_number(session: AsyncSession, period: str) -> int:
    """Counts up, in the transaction that uses it."""
    row = (await session.execute(select(InvoiceNumber).where(InvoiceNumber.period == period).with_for_update())).scalar()
    if row is None:
        row = InvoiceNumber(period=period, last=0)
        session.add(row)
    row.last += 1
    await session.flush()
    return row.last


# -- across workspaces: what the billing loop and the start look for


async def workspaces_due(session: AsyncSession, before: str, limit: int) -> Sequence[str]:
    """Workspaces with records of months before `before` that no invoice holds."""
    query = select(UsageRecord.workspace).where(UsageRecord.invoice == "", UsageRecord.period < before)
    return list((await session.execute(query.distinct().order_by(UsageRecord.workspace).limit(limit))).scalars())


async def paying_workspaces(session: AsyncSession) -> list[tuple[str, str]]:
    """(workspace, plan) where the plan has a monthly price."""
    query = select(Workspace.name, Workspace.plan).join(Plan, Plan.name == Workspace.plan).where(Plan.monthly_price > 0)
    return [(name, plan) for name, plan in await session.execute(query)]


async def workspaces_unsettled(session: AsyncSession, before: float) -> Sequence[str]:
    """Workspaces that store something whose use is not written down up to a time."""
    query = select(Reservation.workspace).where(Reservation.metric == STORAGE, Reservation.settled_time < before)
    return list((await session.execute(query.distinct().order_by(Reservation.workspace))).scalars())


async def event_ids(session: AsyncSession, source: str, metric: str, period: str) -> set[str]:
    """Of the records that one source made in a month."""
    query = select(UsageRecord.event_id).where(UsageRecord.source == source, UsageRecord.metric == metric, UsageRecord.period == period)
    return set((await session.execute(query)).scalars())


async def any_live_key(session: AsyncSession) -> bool:
    return (await session.execute(select(ApiKey.id).where(col(ApiKey.revoke_time).is_(None)).limit(1))).scalar() is not None


async def _number(session: AsyncSession, query: Select[tuple[int]]) -> int:
    return int((await session.execute(query)).scalar_one())
