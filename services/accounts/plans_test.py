"""The operator alone sets plans; what is wrong is refused whole; prices hold from now on, for storage too."""

from typing import Any

import pytest

from lepton.accounts.v1 import accounts_service_pb2 as pb
from lepton.accounts.v1 import billing_pb2, workspace_pb2
from lepton.common.v1.options_pb2 import ROLE_ADMIN, ROLE_OPERATOR, ROLE_OWNER, ROLE_VIEWER
from lepton.common.v1.resource_pb2 import Money
from libs.db import Database
from libs.errors import Forbidden, Invalid, QuotaExceeded
from libs.rpc import Call, Client, acting
from libs.testing import FakeClock, as_member
from services.accounts import handlers, repository
from services.accounts.domain.plans import PRICED
from services.accounts.domain.quotas import METRICS

OWNER = "owner@localhost"
# Of September 2026, in which the clock stands.
MONTH = 30 * 86400


def usd(micros: int, currency: str = "USD") -> Money:
    return Money(currency=currency, micros=micros)


def quota(metric: str, limit: int) -> workspace_pb2.PlanQuota:
    return workspace_pb2.PlanQuota(metric=metric, limit=limit)


def cost(metric: str, micros: int, **more: str) -> workspace_pb2.PlanPrice:
    return workspace_pb2.PlanPrice(metric=metric, unit_price=usd(micros, **more))


WHOLE = {"quotas": [quota(metric, 7) for metric in METRICS], "prices": [cost(metric, 3) for metric in PRICED]}


async def set_plan(accounts: Client, name: str = "pro", role: Any = ROLE_OPERATOR, **more: Any) -> workspace_pb2.Plan:
    with as_member("default", OWNER, role):
        return await accounts.SetPlan(pb.SetPlanRequest(name=name, **more))


async def plans(accounts: Client) -> dict[str, workspace_pb2.Plan]:
    with as_member("default", OWNER, ROLE_VIEWER):
        return {plan.name: plan for plan in (await accounts.ListPlans(pb.ListPlansRequest())).plans}


async def store(database: Database, name: str, gib: int, now: float) -> None:
    async with database.unit() as unit:
        await handlers.reserve_quota(
            unit, workspace="default", metric="storage_bytes", reservation=f"datasets/default/{name}", amount=gib << 30, now=now
        )


async def storage_lines(accounts: Client) -> list[tuple[str, float, int, int]]:
    with as_member("default", OWNER):
        lines = (await accounts.GetUsage(pb.GetUsageRequest())).lines
    return [(x.resource, x.quantity, x.unit_price.micros, x.amount.micros) for x in lines if x.metric == "storage_gib_months"]


# -- what is refused


@pytest.mark.parametrize("role", [ROLE_VIEWER, ROLE_ADMIN, ROLE_OWNER])
async def test_nobody_but_the_operator_sets_plans(accounts: Client, role: Any) -> None:
    before = await plans(accounts)
    for name in ("pro", "mine"):
        with pytest.raises(Forbidden):
            await set_plan(accounts, name, role, **WHOLE)
    with acting(Call()), pytest.raises(Exception, match="needs a caller in a workspace"):
        await accounts.SetPlan(pb.SetPlanRequest(name="pro", **WHOLE))
    assert await plans(accounts) == before


@pytest.mark.parametrize(
    ("name", "more", "field", "words"),
    [
        ("pro", {"quotas": [quota("endpoint", 1)]}, "quotas[0].metric", "endpoints"),
        ("pro", {"quotas": [quota("endpoints", 1), quota("endpoints", 2)]}, "quotas[1].metric", "second time"),
        ("pro", {"quotas": [quota("storage_gib_months", 1)]}, "quotas[0].metric", "must be one of"),
        ("pro", {"quotas": [quota("endpoints", -1)]}, "quotas[0].limit", "must be 0"),
        ("pro", {"quotas": [quota("endpoints", 2**63 - 1)]}, "quotas[0].limit", "must be 0"),
        ("pro", {"prices": [cost("endpoints", 1)]}, "prices[0].metric", "must be one of"),
        ("pro", {"prices": [cost("plan_months", 1)]}, "prices[0].metric", "must be one of"),
        ("pro", {"prices": [cost("predictions", -1)]}, "prices[0].unit_price.micros", "must be 0"),
        ("pro", {"prices": [cost("predictions", 10**9 + 1)]}, "prices[0].unit_price.micros", "1000 USD"),
        ("pro", {"prices": [cost("predictions", 1, currency="EUR")]}, "prices[0].unit_price.currency", "must be USD"),
        ("pro", {"prices": [workspace_pb2.PlanPrice(metric="predictions")]}, "prices[0].unit_price", "is required"),
        ("pro", {"monthly_price": usd(-1)}, "monthly_price.micros", "must be 0"),
        ("pro", {"monthly_price": usd(10**12 + 1)}, "monthly_price.micros", "1000000 USD"),
        ("pro", {"monthly_price": usd(1, "EUR")}, "monthly_price.currency", "must be USD"),
        ("pro", {"display_name": ""}, "display_name", "empty"),
        ("team", {"prices": WHOLE["prices"]}, "quotas", "every metric"),
        ("team", {"quotas": WHOLE["quotas"]}, "prices", "every metric"),
        ("Team!", WHOLE, "name", "2 to 40 lower-case"),
    ],
)
async def test_a_wrong_plan_is_refused_whole(accounts: Client, name: str, more: dict[str, Any], field: str, words: str) -> None:
    before = await plans(accounts)
    with pytest.raises(Invalid, match=words) as refused:
        await set_plan(accounts, name, **more)
    assert field in [each.field for each in refused.value.errors]
    assert await plans(accounts) == before


# -- what holds


async def test_a_new_plan_is_there_to_be_taken(accounts: Client) -> None:
    made = await set_plan(accounts, "team", monthly_price=usd(5_000_000), display_name="Team", **WHOLE)
    assert (await plans(accounts))["team"] == made
    assert {x.metric: x.limit for x in made.quotas} == dict.fromkeys(METRICS, 7)
    assert await set_plan(accounts, "team") == made
    with as_member("default", OWNER, ROLE_OPERATOR):
        await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="default", plan="team"))
        lines = (await accounts.GetUsage(pb.GetUsageRequest())).lines
    assert {x.resource: x.amount.micros for x in lines} == {"plans/pro": 20_000_000, "plans/team": 5_000_000}


async def test_what_is_not_named_stays(accounts: Client) -> None:
    before = (await plans(accounts))["pro"]
    after = await set_plan(accounts, quotas=[quota("endpoints", 3)], prices=[cost("predictions", 5)])
    expected = workspace_pb2.Plan.FromString(before.SerializeToString())
    next(x for x in expected.quotas if x.metric == "endpoints").limit = 3
    next(x for x in expected.prices if x.metric == "predictions").unit_price.micros = 5
    assert after == expected == (await plans(accounts))["pro"]


async def test_a_price_of_tokens_is_said_or_they_are_free(accounts: Client) -> None:
    assert "tokens_out" not in {price.metric for price in (await plans(accounts))["pro"].prices}
    after = await set_plan(accounts, prices=[cost("tokens_out", 7)])
    assert {price.metric: price.unit_price.micros for price in after.prices}["tokens_out"] == 7
    again = await set_plan(accounts, prices=[cost("predictions", 5)])
    assert {price.metric: price.unit_price.micros for price in again.prices}["tokens_out"] == 7


async def test_a_lower_limit_holds_for_what_is_new(accounts: Client, database: Database, clock: FakeClock) -> None:
    await store(database, "iris@1", 2, clock())
    await set_plan(accounts, quotas=[quota("storage_bytes", 1 << 30)])
    with pytest.raises(QuotaExceeded, match="1 GiB of storage and 2 GiB are in use"):
        await store(database, "iris@2", 1, clock())
    # What is held stays held.
    await store(database, "iris@1", 2, clock())


async def test_a_price_holds_from_now_on(accounts: Client, database: Database, clock: FakeClock) -> None:
    async def use(event_id: str) -> None:
        async with database.unit() as unit:
            await handlers.record_use(
                unit, source="s", event_id=event_id, workspace="default", metric="cpu_seconds", resource="r", quantity=10, time=clock()
            )

    await use("e1")
    await set_plan(accounts, prices=[cost("cpu_seconds", 1000)], monthly_price=usd(1))
    await use("e2")
    with as_member("default", OWNER):
        lines = (await accounts.GetUsage(pb.GetUsageRequest())).lines
    assert [(x.metric, x.unit_price.micros, x.amount.micros) for x in lines] == [
        ("cpu_seconds", 14, 140),
        ("cpu_seconds", 1000, 10_000),
        ("plan_months", 20_000_000, 20_000_000),
    ]


# -- storage, which has a price at every moment


async def test_storage_so_far_is_shown_and_not_written_down(accounts: Client, database: Database, clock: FakeClock) -> None:
    await store(database, "iris@1", 4, clock())
    assert await storage_lines(accounts) == []
    clock.advance(MONTH / 30)
    for _ in range(2):
        assert await storage_lines(accounts) == [("datasets/iris@1", 0.133333, 25_000, 3333)]
    async with database.read() as session:
        assert not [x for x in await repository.lines(session, "default") if x.metric == "storage_gib_months"]
    with as_member("default", OWNER, ROLE_OPERATOR):
        usage = await accounts.GetUsage(pb.GetUsageRequest())
        assert usage.total.micros == sum(line.amount.micros for line in usage.lines) == 20_003_333
        [draft] = (await accounts.ListInvoices(pb.ListInvoicesRequest())).invoices
        assert (draft.state, draft.total) == (billing_pb2.INVOICE_STATE_DRAFT, usage.total)
        # What was shown is what is issued; after it, shown once and not twice.
        assert (await accounts.CreateInvoice(pb.CreateInvoiceRequest())).total == usage.total
        assert await storage_lines(accounts) == [("datasets/iris@1", 0.133333, 25_000, 3333)]
        clock.advance(MONTH / 30)
        assert await storage_lines(accounts) == [("datasets/iris@1", 0.266666, 25_000, 6666)]
        [draft, _issued] = (await accounts.ListInvoices(pb.ListInvoicesRequest())).invoices
        assert draft.total.micros == 3333


async def test_storage_over_a_months_end_is_in_both(accounts: Client, database: Database, clock: FakeClock) -> None:
    october = 1_790_812_800.0
    clock.now = october - MONTH / 10
    await store(database, "iris@1", 10, clock())
    clock.now = october + 31 * 86400 / 10
    assert await storage_lines(accounts) == [("datasets/iris@1", 1.0, 25_000, 25_000)]
    with as_member("default", OWNER):
        september = (await accounts.GetUsage(pb.GetUsageRequest(period="2026-09"))).lines
        assert not (await accounts.GetUsage(pb.GetUsageRequest(period="2026-11"))).lines
    assert [x.quantity for x in september if x.metric == "storage_gib_months"] == [1.0]


async def test_a_new_price_of_storage_is_not_for_what_was_stored(accounts: Client, database: Database, clock: FakeClock) -> None:
    await store(database, "iris@1", 30, clock())
    clock.advance(86400)
    await set_plan(accounts, prices=[cost("storage_gib_months", 1_000_000)])
    clock.advance(86400)
    expected = [("datasets/iris@1", 1.0, 25_000, 25_000), ("datasets/iris@1", 1.0, 1_000_000, 1_000_000)]
    assert await storage_lines(accounts) == expected
    with as_member("default", OWNER, ROLE_OPERATOR):
        await set_plan(accounts, "team", quotas=[quota(metric, 1 << 40) for metric in METRICS], prices=WHOLE["prices"])
        await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="default", plan="team"))
    clock.advance(86400)
    assert await storage_lines(accounts) == [("datasets/iris@1", 1.0, 3, 3), *expected]
