"""How much of a plan is left, and taking some of it before something is made or done."""

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit
from libs.errors import NotFound, Poison
from services.accounts import repository
from services.accounts.domain.periods import next_month, period_of
from services.accounts.domain.pricing import whole_units
from services.accounts.domain.quotas import COUNTERS, METRICS, Limits, Quota, check_metric, grant
from services.accounts.tables import Plan, Reservation, Workspace

# These stand until the job's end is told, however long it takes.
STANDING = ("training-jobs/", "batch-predictions/")
# Rows of others' listings are the buyer's predictions: the gateway reserves them as such, so they are used up as such.
COUNTED_AS = {"listing_rows": "predictions"}


async def quotas(session: AsyncSession, *, workspace: Workspace, now: float, period: str = "") -> list[Quota]:
    """Of every metric; counters of `period` (default: the running month), what exists now."""
    plan = await session.get_one(Plan, workspace.plan)
    running = period_of(now)
    used = await repository.existing(session, workspace.name)
    for metric, amount in (await repository.reserved(session, workspace.name, now)).items():
        if metric not in COUNTERS or period in ("", running):
            used[metric] = used.get(metric, 0) + amount
    for metric, quantity in (await repository.totals(session, workspace.name, period or running)).items():
        counted = COUNTED_AS.get(metric, metric)
        used[counted] = used.get(counted, 0) + whole_units(quantity)
    return [Quota(metric, plan.quotas.get(metric, 0), used.get(metric, 0)) for metric in METRICS]


async def take(unit: Unit, *, workspace: Workspace, metric: str, amount: int, now: float, at_least: int | None = None) -> tuple[int, Quota]:
    """How much is granted, and the quota before. Raises QuotaExceeded. The workspace must be locked."""
    quota = next(q for q in await quotas(unit.session, workspace=workspace, now=now) if q.metric == metric)
    plans = [Limits(plan.name, plan.quotas) for plan in await repository.plans(unit.session)]
    renews = next_month(period_of(now))
    return grant(quota, amount, plan=workspace.plan, plans=plans, renews=renews, at_least=at_least), quota


async def reserve_quota(
    unit: Unit,
    *,
    workspace: str,
    metric: str,
    reservation: str,
    amount: int,
    now: float,
    at_least: int | None = None,
    expires_in: float = 3600,
) -> tuple[int, Quota]:
    """What is granted, and the quota after. The same reservation again answers the same."""
    check_metric(metric)
    found = await repository.lock_workspace(unit.session, workspace)
    if found is None:
        raise NotFound(f"there is no workspace '{workspace}'")
    await repository.forget_expired(unit.session, workspace, now)
    held = await repository.reservation(unit.session, workspace, reservation, metric)
    if held is None:
        granted, _ = await take(unit, workspace=found, metric=metric, amount=amount, now=now, at_least=at_least)
        held = Reservation(workspace=workspace, name=reservation, metric=metric, amount=granted, time=now, settled_time=now)
        unit.session.add(held)
    held.time = now
    if metric in COUNTERS and not reservation.startswith(STANDING):
        held.expire_time = now + expires_in
    await unit.session.flush()
    after = next(q for q in await quotas(unit.session, workspace=found, now=now) if q.metric == metric)
    return held.amount, after


async def store_anyway(unit: Unit, *, workspace: str, name: str, amount: int, now: float, taken: str = "") -> None:
    """Counts what is in the store already, also beyond the limit; of a reservation `taken` for it before, it takes the place."""
    if await repository.workspace(unit.session, workspace) is None:
        raise Poison(f"nobody stores '{name}': there is no workspace '{workspace}'")
    if await repository.reservation(unit.session, workspace, name, repository.STORAGE) is None:
        row = Reservation(workspace=workspace, name=name, metric=repository.STORAGE, amount=amount, time=now, settled_time=now)
        await unit.insert(row)
    if taken:
        await repository.release(unit.session, workspace, taken, metric=repository.STORAGE)


async def release_quota(unit: Unit, *, workspace: str, reservation: str, metric: str = "") -> None:
    """Gives back; nothing to give is fine."""
    await repository.release(unit.session, workspace, reservation, metric=metric)
