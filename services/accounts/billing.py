"""What happens without anybody asking: plans are charged when a month begins, invoices issued when it is over."""

import time
from collections.abc import Callable

from libs.db import Database
from services.accounts import handlers, repository
from services.accounts.domain.periods import period_of, start_of
from services.accounts.handlers.billing import PLAN_METRIC, SOURCE, plan_charge_id

BATCH = 100


class Billing:
    """A step of a loop. Done twice or half it does no harm: each workspace is one transaction, and knows what it has."""

    def __init__(self, database: Database, *, invoice_after: float, clock: Callable[[], float] = time.time) -> None:
        self._database, self._invoice_after, self._clock = database, invoice_after, clock

    async def step(self) -> bool:
        """True where there was more than one batch to issue."""
        now = self._clock()
        await self._charge_plans(now)
        await self._settle_storage(start_of(period_of(now)))
        return await self._issue(now, before=period_of(now - self._invoice_after))

    async def _charge_plans(self, now: float) -> None:
        """A month in which the platform never ran is not charged."""
        period = period_of(now)
        async with self._database.read() as session:
            paying = await repository.paying_workspaces(session)
            charged = await repository.event_ids(session, SOURCE, PLAN_METRIC, period)
        for name, plan in paying:
            if plan_charge_id(name, period, plan) not in charged:
                async with self._database.unit() as unit:
                    workspace = await repository.lock_workspace(unit.session, name)
                    if workspace is not None:
                        await handlers.charge_plan(unit, workspace=workspace, now=now)

    async def _settle_storage(self, until: float) -> None:
        """Storage of the months that are over becomes use."""
        async with self._database.read() as session:
            unsettled = await repository.workspaces_unsettled(session, until)
        for name in unsettled:
            async with self._database.unit() as unit:
                await repository.lock_workspace(unit.session, name)
                await handlers.settle_storage(unit, workspace=name, until=until)

    async def _issue(self, now: float, *, before: str) -> bool:
        async with self._database.read() as session:
            due = await repository.workspaces_due(session, before, BATCH)
        for name in due:
            async with self._database.unit() as unit:
                await handlers.issue_invoice(unit, workspace=name, before=before, now=now)
        return len(due) == BATCH
