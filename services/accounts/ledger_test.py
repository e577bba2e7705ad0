"""Facts told twice, late or in another order make the same ledger, and its money adds up to the micro."""

import asyncio
import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from lepton.common.v1 import resource_pb2
from lepton.compute.v1.allocation_pb2 import Allocation
from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.deployment.v1.events_pb2 import PredictionsServed
from lepton.marketplace.v1.events_pb2 import ListingInvoked
from libs.db import Database
from libs.errors import Conflict, Poison
from libs.events import Event, handling
from libs.testing import migrated_database
from services.accounts import handlers, repository
from services.accounts.consumers import reactions
from services.accounts.domain.pricing import MICROS, amount_of, quantity_of, split, whole_units
from services.accounts.domain.roles import Role
from services.accounts.tables import Earning, UsageRecord

NOW = 1_790_000_000
MONTH = 31 * 86400
REACTIONS = reactions(Decimal("12.5"))
WORKSPACES = ("acme", "beta")

times = st.integers(NOW - 2 * MONTH, NOW).map(lambda seconds: Timestamp(seconds=seconds))
allocations = st.builds(
    lambda id, workspace, seconds, accelerator, count, millis, time: AllocationEnded(
        allocation=Allocation(
            id=f"alc-{id}",
            workspace=workspace,
            holder="training-jobs/j1/attempts/1",
            resources=resource_pb2.Resources(accelerator=accelerator, count=count, cpu_millis=millis),
            end_time=time,
        ),
        seconds=seconds,
    ),
    st.uuids(),
    st.sampled_from(WORKSPACES),
    st.floats(0, 1e6),
    st.integers(0, 3),
    st.integers(1, 8),
    st.integers(0, 64_000),
    times,
)
predictions = st.builds(
    lambda workspace, rows, time: PredictionsServed(workspace=workspace, endpoint="e", requests=1, rows=rows, time=time),
    st.sampled_from(WORKSPACES),
    st.integers(0, 10**9),
    times,
)
invocations = st.builds(
    lambda buyer, publisher, rows, price, time: ListingInvoked(
        listing="check",
        subscription="sub-1",
        buyer=buyer,
        publisher=publisher,
        rows=rows,
        unit_price=resource_pb2.Money(currency="USD", micros=price),
        time=time,
    ),
    st.sampled_from(WORKSPACES),
    st.sampled_from(WORKSPACES),
    st.integers(0, 10**6),
    st.integers(0, 10**9),
    times,
)
facts = st.lists(st.one_of(allocations, predictions, invocations).map(lambda message: Event.of(message, key="k")), max_size=12)


async def tell(database: Database, event: Event) -> None:
    message: Any = event.message()
    async with database.unit() as unit:
        with handling(event):
            await REACTIONS[type(message)](unit, message)


async def opened(database: Database) -> None:
    async with database.unit() as unit:
        for name in WORKSPACES:
            await handlers.create_workspace(
                unit, member="ada@acme.test", role=Role.OPERATOR, name=name, display_name="", plan="pro", owned_limit=9, now=NOW
            )


async def ledger(database: Database) -> tuple[set[Any], set[Any]]:
    async with database.read() as session:
        records = set((await session.execute(select(*UsageRecord.__table__.columns))).all())  # type: ignore[attr-defined]
        earnings = set((await session.execute(select(*Earning.__table__.columns))).all())  # type: ignore[attr-defined]
    return records, earnings


@given(facts, st.randoms(use_true_random=False))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_order_and_repetition_change_nothing(told: list[Event], chance: random.Random) -> None:
    async def play(events: list[Event]) -> tuple[set[Any], set[Any]]:
        async with migrated_database("services.accounts") as database:
            await opened(database)
            for event in events:
                await tell(database, event)
            return await ledger(database)

    again = told + chance.choices(told, k=len(told)) if told else []
    chance.shuffle(again)
    assert asyncio.run(play(told)) == asyncio.run(play(again))


@given(facts, st.integers(0, 12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_invoices_hold_every_record_once(told: list[Event], middle: int) -> None:
    async def play() -> None:
        async with migrated_database("services.accounts") as database:
            await opened(database)
            invoices = []
            for batch in (told[:middle], told[middle:]):
                for event in batch:
                    await tell(database, event)
                for workspace in WORKSPACES:
                    invoices += await issue(database, workspace)
            records, earnings = await ledger(database)
            assert sum(invoice.total for invoice, _ in invoices) == sum(record.amount for record in records)
            for invoice, lines in invoices:
                assert sum(line.amount for line in lines) == invoice.total
                assert invoice.total == sum(r.amount for r in records if r.invoice == invoice.number)
            assert all(record.invoice for record in records)
            assert all(e.gross == e.fee + e.net and min(e.fee, e.net) >= 0 for e in earnings)
            assert sum(e.gross for e in earnings) == sum(r.amount for r in records if r.metric == "listing_rows")
            await totals_agree(database, records)

    asyncio.run(play())


async def issue(database: Database, workspace: str) -> list[Any]:
    """Everything that can be issued, with the lines as they are read back."""
    async with database.unit() as unit:
        try:
            await handlers.create_invoice(unit, workspace=workspace, now=NOW)
        except Conflict:
            return []
    async with database.read() as session:
        known = await repository.invoices(session, workspace)
        new = [invoice for invoice in known if invoice.id not in SEEN]
        SEEN.update(invoice.id for invoice in new)
        return [(invoice, await repository.lines(session, workspace, invoice=invoice.number)) for invoice in new]


SEEN: set[str] = set()


async def totals_agree(database: Database, records: set[Any]) -> None:
    async with database.read() as session:
        for workspace in WORKSPACES:
            for period in {record.period for record in records}:
                mine = [r for r in records if (r.workspace, r.period) == (workspace, period)]
                sums = {m: sum(r.quantity for r in mine if r.metric == m) for m in {r.metric for r in mine}}
                assert await repository.totals(session, workspace, period) == sums


@given(st.floats(0, 1e9), st.integers(0, 10**9))
def test_an_amount_is_within_half_a_micro(value: float, price: int) -> None:
    quantity = quantity_of(value)
    assert abs(Fraction(quantity, MICROS) - Fraction(value)) <= Fraction(1, 2 * MICROS)
    assert abs(amount_of(quantity, price) - Fraction(quantity * price, MICROS)) <= Fraction(1, 2)
    assert (whole_units(quantity) - 1) * MICROS < quantity <= whole_units(quantity) * MICROS


@given(st.integers(0, 2**62), st.decimals(0, 100, places=3))
def test_nothing_is_lost_in_a_split(gross: int, percent: Decimal) -> None:
    fee, net = split(gross, percent)
    assert fee + net == gross and fee >= 0 and net >= 0
    assert abs(fee - gross * Fraction(percent) / 100) <= Fraction(1, 2)


def test_halves_go_to_even() -> None:
    assert [amount_of(500_000, price) for price in (1, 3, 5)] == [0, 2, 2]
    assert split(5, Decimal(10)) == (0, 5)


async def refused(message: Message) -> None:
    async with migrated_database("services.accounts") as database:
        await opened(database)
        try:
            await tell(database, Event.of(message, key="k"))
        except Poison:
            _, earnings = await ledger(database)
            assert not earnings
            return
        raise AssertionError("was recorded")


async def test_what_nobody_can_be_billed_for_is_poison() -> None:
    price = resource_pb2.Money(currency="USD", micros=-1)
    await refused(PredictionsServed(workspace="nowhere", rows=1))
    await refused(AllocationEnded(allocation=Allocation(workspace="acme", holder="x"), seconds=float("nan")))
    await refused(AllocationEnded(allocation=Allocation(workspace="acme", holder="x"), seconds=float("inf")))
    await refused(AllocationEnded(allocation=Allocation(workspace="acme", holder="x"), seconds=-1))
    await refused(PredictionsServed(workspace="acme", rows=2**64 - 1))
    await refused(ListingInvoked(listing="l", buyer="acme", publisher="beta", rows=1, unit_price=price))
    await refused(ListingInvoked(listing="l", buyer="acme", publisher="nowhere", rows=1))
