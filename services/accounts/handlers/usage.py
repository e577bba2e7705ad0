"""The ledger: one record a fact of use, priced once. Told twice, in any order, it is the same ledger."""

from decimal import Decimal
from fractions import Fraction

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit
from libs.errors import Poison
from services.accounts import repository
from services.accounts.domain.metering import gib_months
from services.accounts.domain.periods import by_month, period_of
from services.accounts.domain.pricing import STORAGE_METRIC, Line, amount_of, quantity_of, split
from services.accounts.tables import Earning, Plan, Reservation, UsageRecord, Workspace


async def record_use(
    unit: Unit,
    *,
    source: str,
    event_id: str,
    workspace: str,
    metric: str,
    resource: str,
    quantity: float | Fraction,
    time: float,
    unit_price: int | None = None,
) -> UsageRecord | None:
    """Writes down use of `quantity` units at `time`; None where it was written before, or is nothing.

    Without a `unit_price` (micros) the one of the workspace's plan holds.
    """
    millionths = quantity_of(quantity)
    if not millionths or await repository.recorded(unit.session, source, event_id, metric):
        return None
    if unit_price is None:
        unit_price = await _price(unit, workspace, metric)
    elif unit_price < 0:
        raise Poison(f"a unit price of {unit_price} cannot be")
    elif await repository.workspace(unit.session, workspace) is None:
        raise _nobody(workspace)
    period = period_of(time)
    record = UsageRecord(
        source=source,
        event_id=event_id,
        metric=metric,
        workspace=workspace,
        period=period,
        resource=resource,
        quantity=millionths,
        unit_price=unit_price,
        amount=amount_of(millionths, unit_price),
        time=time,
    )
    await unit.insert(record)
    await repository.add_to_total(unit.session, workspace, period, metric, millionths)
    return record


async def record_listing_rows(
    unit: Unit,
    *,
    source: str,
    event_id: str,
    listing: str,
    buyer: str,
    publisher: str,
    rows: int,
    unit_price: int,
    fee_percent: Decimal,
    time: float,
) -> None:
    """What the buyer owes and the publisher earns, together or not at all."""
    record = await record_use(
        unit,
        source=source,
        event_id=event_id,
        workspace=buyer,
        metric="listing_rows",
        resource=f"listings/{listing}",
        quantity=rows,
        time=time,
        unit_price=unit_price,
    )
    if record is None:
        return
    if await repository.workspace(unit.session, publisher) is None:
        raise _nobody(publisher)
    fee, net = split(record.amount, fee_percent)
    earning = Earning(
        source=source,
        event_id=event_id,
        workspace=publisher,
        period=record.period,
        listing=listing,
        buyer=buyer,
        quantity=record.quantity,
        gross=record.amount,
        fee=fee,
        net=net,
        time=time,
    )
    await unit.insert(earning)


async def settle_storage(unit: Unit, *, workspace: str, until: float, prefix: str = "", asked_before: float | None = None) -> None:
    """Writes down what has been stored up to `until`, a record a month; all of the workspace's, or what begins with `prefix`."""
    held = await repository.storage(unit.session, workspace, settled_before=until, prefix=prefix, asked_before=asked_before, lock=True)
    for reservation in held:
        for _period, start, end in by_month(reservation.settled_time, until):
            await record_use(
                unit,
                source="/lepton/accounts",
                event_id=f"{reservation.name}/{start!r}",
                workspace=workspace,
                metric=STORAGE_METRIC,
                resource=_stored(reservation),
                quantity=gib_months(reservation.amount, start, end),
                time=start,
            )
        reservation.settled_time = until
    await unit.session.flush()


async def unsettled_storage(session: AsyncSession, *, workspace: Workspace, now: float) -> dict[str, list[Line]]:
    """What `settle_storage` would write down now, by month; at the price of now."""
    plan = await session.get_one(Plan, workspace.plan)
    price = plan.prices.get(STORAGE_METRIC, 0)
    lines: dict[str, list[Line]] = {}
    for reservation in await repository.storage(session, workspace.name, settled_before=now):
        for period, start, end in by_month(reservation.settled_time, now):
            if quantity := quantity_of(gib_months(reservation.amount, start, end)):
                line = Line(STORAGE_METRIC, _stored(reservation), quantity, price, amount_of(quantity, price))
                lines.setdefault(period, []).append(line)
    return lines


def _stored(reservation: Reservation) -> str:
    """The resource behind a reservation: "datasets/acme/iris@1" is "datasets/iris@1"."""
    kind, *rest = reservation.name.split("/")
    return "/".join([kind, *rest[1:]])


async def _price(unit: Unit, workspace: str, metric: str) -> int:
    found = await repository.workspace(unit.session, workspace)
    if found is None:
        raise _nobody(workspace)
    plan = await unit.session.get_one(Plan, found.plan)
    return plan.prices.get(metric, 0)


def _nobody(workspace: str) -> Poison:
    return Poison(f"nobody can be billed: there is no workspace '{workspace}'")
