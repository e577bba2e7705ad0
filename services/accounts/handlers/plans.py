"""The operator's part: what plans there are, what they allow and cost."""

from libs.db import Unit
from libs.errors import Conflict
from services.accounts import repository
from services.accounts.domain.plans import PlanChanges, changed_limits, changed_prices, check_plan
from services.accounts.domain.pricing import STORAGE_METRIC
from services.accounts.handlers.usage import settle_storage
from services.accounts.tables import Plan


async def set_plan(unit: Unit, *, name: str, changes: PlanChanges, now: float) -> Plan:
    """Adds a plan, or changes one: quotas at once, prices for use from now on."""
    plan = await repository.lock_plan(unit.session, name)
    check_plan(changes, new=plan is None)
    if plan is None:
        taken = Conflict(f"the plan '{name}' was made at the same time; try again", code="name_taken")
        plan = Plan(name=name, display_name=name, monthly_price=0, quotas={}, prices={})
        _apply(plan, changes)
        return await unit.insert(plan, taken=taken)
    prices = changed_prices(plan.prices, changes)
    if prices[STORAGE_METRIC] != plan.prices.get(STORAGE_METRIC, 0):
        # What has been stored until now is owed at the price of until now.
        for workspace in await repository.workspaces_on(unit.session, name):
            await repository.lock_workspace(unit.session, workspace)
            await settle_storage(unit, workspace=workspace, until=now)
    _apply(plan, changes)
    return plan


def _apply(plan: Plan, changes: PlanChanges) -> None:
    plan.display_name = plan.display_name if changes.display_name is None else changes.display_name
    plan.monthly_price = plan.monthly_price if changes.monthly_price is None else changes.monthly_price.micros
    plan.quotas = changed_limits(plan.quotas, changes)
    plan.prices = changed_prices(plan.prices, changes)
