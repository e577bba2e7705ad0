"""Invoices, and the plan's price once a month."""

from libs.db import Unit, new_id
from libs.errors import Conflict, NotFound
from services.accounts import repository, wire
from services.accounts.domain.periods import period_of
from services.accounts.domain.pricing import Line
from services.accounts.handlers.usage import record_use, settle_storage
from services.accounts.tables import Invoice, Plan, Workspace

SOURCE = "/lepton/accounts"
PLAN_METRIC = "plan_months"


def plan_charge_id(workspace: str, period: str, plan: str) -> str:
    """Natural key of a plan's monthly price."""
    return f"{workspace}/{period}/{plan}"


async def charge_plan(unit: Unit, *, workspace: Workspace, now: float) -> None:
    """Records the monthly price of the plan in force, in advance; once a month and plan."""
    plan = await unit.session.get_one(Plan, workspace.plan)
    if plan.monthly_price:
        await record_use(
            unit,
            source=SOURCE,
            event_id=plan_charge_id(workspace.name, period_of(now), plan.name),
            workspace=workspace.name,
            metric=PLAN_METRIC,
            resource=f"plans/{plan.name}",
            quantity=1,
            time=now,
            unit_price=plan.monthly_price,
        )


async def create_invoice(unit: Unit, *, workspace: str, now: float) -> tuple[Invoice, list[Line]]:
    """Issues all that no invoice holds, a month an invoice; answers the newest month's."""
    found = await _lock(unit, workspace)
    await charge_plan(unit, workspace=found, now=now)
    await settle_storage(unit, workspace=workspace, until=now)
    issued = [await _issue(unit, workspace, period, now) for period in await repository.open_periods(unit.session, workspace)]
    if not issued:
        last = await repository.invoices(unit.session, workspace, limit=1)
        since = f"since invoice {last[0].number}" if last else "yet"
        raise Conflict(f"there is nothing to invoice: no use has been recorded {since}")
    return issued[-1]


async def issue_invoice(unit: Unit, *, workspace: str, before: str, now: float) -> list[Invoice]:
    """Issues what no invoice holds of the months before `before`."""
    await _lock(unit, workspace)
    periods = await repository.open_periods(unit.session, workspace)
    return [(await _issue(unit, workspace, period, now))[0] for period in periods if period < before]


async def _issue(unit: Unit, workspace: str, period: str, now: float) -> tuple[Invoice, list[Line]]:
    number = f"INV-{period}-{await repository.next_invoice_number(unit.session, period):06}"
    # First the number, then the sum: a record that comes in between is on the next invoice, whole.
    await repository.put_on_invoice(unit.session, workspace, period, number)
    lines = await repository.lines(unit.session, workspace, invoice=number)
    total = sum(line.amount for line in lines)
    invoice = Invoice(id=new_id("inv"), number=number, workspace=workspace, period=period, total=total, issue_time=now)
    await unit.insert(invoice)
    await unit.emit(wire.invoice_issued(invoice, lines))
    return invoice, lines


async def _lock(unit: Unit, workspace: str) -> Workspace:
    found = await repository.lock_workspace(unit.session, workspace)
    if found is None:
        raise NotFound(f"there is no workspace '{workspace}'")
    return found
