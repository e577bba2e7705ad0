"""Through a socket, as the gateway calls: nobody in, then what members may, then money."""

import asyncio
import hashlib
from typing import Any

import pytest
from sqlalchemy import select, text

from lepton.accounts.v1 import accounts_service_pb2 as pb
from lepton.accounts.v1 import billing_pb2
from lepton.common.v1.options_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_OPERATOR, ROLE_OWNER, ROLE_VIEWER
from libs.db import Database
from libs.db.infrastructure import idempotency_keys, outbox
from libs.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Unauthenticated
from libs.rpc import Call, Client, Identity, acting
from libs.testing import FakeClock, as_member, schema_differences
from services.accounts import handlers, tables

OWNER = "owner@localhost"


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def who(accounts: Client, secret: str) -> pb.AuthenticateResponse:
    with acting(Call()):
        return await accounts.Authenticate(pb.AuthenticateRequest(key_sha256=digest(secret)))


async def new_workspace(accounts: Client, name: str, member: str) -> str:
    """The secret of its owner's key."""
    with as_member("default", member, ROLE_OPERATOR):
        return (await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))).secret


async def events(database: Database) -> list[str]:
    async with database.read() as session:
        return [headers["ce_type"].rsplit(".", 1)[-1] for headers in (await session.execute(select(outbox.c.headers))).scalars()]


async def test_the_migration_makes_the_tables() -> None:
    assert await schema_differences("services.accounts", tables.Table.metadata) == []


# -- nobody in


async def test_unknown_and_revoked_keys_are_refused_in_the_same_words(accounts: Client) -> None:
    secret = await new_workspace(accounts, "acme", "ada@acme.test")
    caller = await who(accounts, secret)
    with as_member("acme", "ada@acme.test"):
        first = await accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=caller.api_key_id))
        again = await accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=caller.api_key_id))
    assert first == again and first.HasField("revoke_time")
    words = set()
    for bad in (secret, "lpt_unknown", ""):
        with pytest.raises(Unauthenticated) as refused:
            await who(accounts, bad)
        words.add(refused.value.detail)
    assert len(words) == 1


async def test_another_workspaces_things_do_not_exist(accounts: Client) -> None:
    secret = await new_workspace(accounts, "acme", "ada@acme.test")
    await new_workspace(accounts, "evil", "eve@evil.test")
    key = (await who(accounts, secret)).api_key_id
    with as_member("acme", "ada@acme.test"):
        await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="pro"))
        number = (await accounts.CreateInvoice(pb.CreateInvoiceRequest())).number
    with as_member("evil", "eve@evil.test"):
        for call in (
            accounts.GetWorkspace(pb.GetWorkspaceRequest(name="acme")),
            accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", display_name="mine")),
            accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=key)),
            accounts.DeleteMember(pb.DeleteMemberRequest(email="ada@acme.test")),
            accounts.GetInvoice(pb.GetInvoiceRequest(number=number)),
        ):
            with pytest.raises(NotFound):
                await call
        assert [w.name for w in (await accounts.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces] == ["evil"]
        assert [m.email for m in (await accounts.ListMembers(pb.ListMembersRequest())).members] == ["eve@evil.test"]
        assert [k.member for k in (await accounts.ListApiKeys(pb.ListApiKeysRequest())).api_keys] == ["eve@evil.test"]
        assert all(i.number != number for i in (await accounts.ListInvoices(pb.ListInvoicesRequest())).invoices)
        assert not (await accounts.GetUsage(pb.GetUsageRequest())).lines
    assert (await who(accounts, secret)).workspace == "acme"


async def test_nobody_rises_above_their_role(accounts: Client) -> None:
    secret = await new_workspace(accounts, "acme", "ada@acme.test")
    owner_key = (await who(accounts, secret)).api_key_id
    with as_member("acme", "ada@acme.test"):
        await accounts.SetMember(pb.SetMemberRequest(email="Bob@Acme.test", role=ROLE_ADMIN))
        with pytest.raises(Invalid, match="only the first workspace has operators"):
            await accounts.SetMember(pb.SetMemberRequest(email="bob@acme.test", role=ROLE_OPERATOR))
    with as_member("acme", "bob@acme.test", ROLE_ADMIN):
        for call in (
            accounts.SetMember(pb.SetMemberRequest(email="bob@acme.test", role=ROLE_OWNER)),
            accounts.SetMember(pb.SetMemberRequest(email="ada@acme.test", role=ROLE_VIEWER)),
            accounts.DeleteMember(pb.DeleteMemberRequest(email="ada@acme.test")),
            accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k", role=ROLE_OWNER)),
            accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=owner_key)),
            accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="pro")),
        ):
            with pytest.raises(Forbidden):
                await call
    # A token outlives the membership by some minutes.
    with as_member("acme", "gone@acme.test"), pytest.raises(Forbidden, match="no member"):
        await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k"))
    # A token says owner, the member has become an editor: the key gets no more than that.
    with as_member("acme", "ada@acme.test"):
        await accounts.SetMember(pb.SetMemberRequest(email="bob@acme.test", role=ROLE_EDITOR))
    with as_member("acme", "bob@acme.test", ROLE_OWNER):
        assert (await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k"))).api_key.role == ROLE_EDITOR


@pytest.mark.parametrize("role", [ROLE_VIEWER, ROLE_EDITOR])
async def test_viewers_and_editors_manage_nothing(accounts: Client, role: int) -> None:
    with as_member("default", OWNER, role):
        for call in (
            accounts.ListApiKeys(pb.ListApiKeysRequest()),
            accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k")),
            accounts.SetMember(pb.SetMemberRequest(email="x@y.test", role=ROLE_VIEWER)),
            accounts.CreateInvoice(pb.CreateInvoiceRequest()),
            accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="rich", plan="pro")),
        ):
            with pytest.raises(Forbidden):
                await call


async def test_a_key_says_no_more_than_its_member_still_may(accounts: Client) -> None:
    secret = await new_workspace(accounts, "acme", "ada@acme.test")
    with as_member("acme", "ada@acme.test"):
        await accounts.SetMember(pb.SetMemberRequest(email="bob@acme.test", role=ROLE_OWNER))
    assert (await who(accounts, secret)).role == ROLE_OWNER
    with as_member("acme", "bob@acme.test"):
        await accounts.SetMember(pb.SetMemberRequest(email="ada@acme.test", role=ROLE_VIEWER))
        assert (await who(accounts, secret)).role == ROLE_VIEWER
        await accounts.DeleteMember(pb.DeleteMemberRequest(email="ada@acme.test"))
        with pytest.raises(Conflict, match="last owner"):
            await accounts.DeleteMember(pb.DeleteMemberRequest(email="bob@acme.test"))
        with pytest.raises(Conflict, match="last owner"):
            await accounts.SetMember(pb.SetMemberRequest(email="bob@acme.test", role=ROLE_ADMIN))
        with pytest.raises(NotFound, match=r"did you mean bob@acme\.test"):
            await accounts.DeleteMember(pb.DeleteMemberRequest(email="bobb@acme.test"))
    with pytest.raises(Unauthenticated):
        await who(accounts, secret)


async def test_secrets_are_nowhere(accounts: Client, database: Database) -> None:
    request = pb.CreateWorkspaceRequest(name="acme")
    with as_member("default", "ada@acme.test"):
        made = await accounts.CreateWorkspace(request, idempotency_key="k1")
        again = await accounts.CreateWorkspace(request, idempotency_key="k1")
    assert made.secret.startswith("lpt_") and len(made.secret) == 47 and made.secret.startswith(made.api_key.prefix)
    # The secret is shown once; the same request again makes nothing new.
    assert again.api_key == made.api_key and not again.secret
    async with database.read() as session:
        for table in ("api_keys", "outbox", idempotency_keys.name):
            rows = (await session.execute(text(f"SELECT * FROM {table}"))).all()
            assert rows and made.secret.encode() not in repr(rows).encode()


# -- what members may


async def test_the_first_owner_is_the_operator(accounts: Client) -> None:
    caller = await who(accounts, "first-key")
    assert (caller.workspace, caller.member, caller.role) == ("default", OWNER, ROLE_OPERATOR)
    with acting(Call(Identity("gateway", caller.workspace, caller.member, caller.role))):
        me = await accounts.GetMe(pb.GetMeRequest())
        assert (me.workspace.plan, me.role, me.workspace.role) == ("pro", ROLE_OPERATOR, ROLE_OPERATOR)
        assert {q.metric: q.used for q in me.quotas}["members"] == 1
        await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="acme"))
        assert (await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="pro"))).plan == "pro"
        made = await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="mine"))
        assert made.api_key.role == ROLE_OPERATOR
        keys = await accounts.ListApiKeys(pb.ListApiKeysRequest(page_size=1))
        assert [k.name for k in keys.api_keys] == ["mine"]
        rest = await accounts.ListApiKeys(pb.ListApiKeysRequest(page_token=keys.next_page_token))
        assert [(k.name, k.prefix) for k in rest.api_keys] == [("bootstrap", "firs")]


async def test_a_workspace_is_made_once(accounts: Client, database: Database) -> None:
    with as_member("default", "ada@acme.test"):
        made = await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="acme"))
        assert (made.workspace.plan, made.workspace.role, made.workspace.display_name) == ("trial", ROLE_OWNER, "acme")
        with pytest.raises(Conflict) as taken:
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="acme"))
        assert taken.value.code == "name_taken"
        with pytest.raises(Invalid, match="one of trial, pro") as unknown:
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="beta", plan="prro"))
        assert unknown.value.errors[0].suggestions == ("pro",)
        with pytest.raises(Invalid, match="2 to 40 lower-case"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="A c"))
        for name in ("a1", "a2", "a3"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name=name))
        with pytest.raises(QuotaExceeded, match="owns 4 workspaces"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="a4"))
        page = await accounts.ListWorkspaces(pb.ListWorkspacesRequest(page_size=3))
        last = await accounts.ListWorkspaces(pb.ListWorkspacesRequest(page_size=3, page_token=page.next_page_token))
        assert [w.name for w in [*page.workspaces, *last.workspaces]] == ["a1", "a2", "a3", "acme"]
        assert not last.next_page_token
        with pytest.raises(NotFound, match="did you mean acme"):
            await accounts.GetWorkspace(pb.GetWorkspaceRequest(name="acmee"))
    assert (await events(database)).count("WorkspaceCreated") == 5


async def test_plans_have_every_metric(accounts: Client) -> None:
    with as_member("default", OWNER, ROLE_VIEWER):
        plans = {plan.name: plan for plan in (await accounts.ListPlans(pb.ListPlansRequest())).plans}
    assert list(plans) == ["trial", "pro"]
    trial, pro = ({q.metric: q.limit for q in plans[name].quotas} for name in plans)
    assert all(pro[metric] > trial[metric] for metric in trial) and len(trial) == 9
    assert {p.metric for p in plans["pro"].prices} == {
        "cpu_seconds", "gpu_seconds", "tpu_seconds", "predictions", "storage_gib_months",
    }  # fmt: skip


async def test_what_exists_binds_a_change_of_plan(accounts: Client, database: Database) -> None:
    await new_workspace(accounts, "acme", "ada@acme.test")
    with as_member("acme", "ada@acme.test"):
        await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="pro", display_name="ACME"))
        for n in range(3):
            await reserve(accounts, "endpoints", f"endpoints/acme/e{n}")
        with pytest.raises(Conflict, match="3 endpoints where it allows 2; delete one first"):
            await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="trial"))
        await accounts.ReleaseQuota(pb.ReleaseQuotaRequest(workspace="acme", reservation="endpoints/acme/e0"))
        assert (await accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name="acme", plan="trial"))).plan == "trial"
    assert (await events(database)).count("WorkspacePlanChanged") == 2


# -- quotas


async def reserve(accounts: Client, metric: str, name: str, amount: int = 1, **more: Any) -> pb.ReserveQuotaResponse:
    with acting(Call()):
        return await accounts.ReserveQuota(pb.ReserveQuotaRequest(workspace="acme", metric=metric, reservation=name, amount=amount, **more))


async def test_a_quota_is_taken_once_refused_in_words_and_given_back(accounts: Client) -> None:
    await new_workspace(accounts, "acme", "ada@acme.test")
    for _ in range(2):
        answer = await reserve(accounts, "endpoints", "endpoints/acme/a")
        assert (answer.granted, answer.limit, answer.remaining) == (1, 2, 1)
    await reserve(accounts, "endpoints", "endpoints/acme/b")
    with pytest.raises(QuotaExceeded) as refused:
        await reserve(accounts, "endpoints", "endpoints/acme/c")
    assert refused.value.detail == "the trial plan allows 2 endpoints and 2 are in use; delete one, or change to pro (100)"
    assert refused.value.meta == {
        "metric": "endpoints", "limit": 2, "used": 2, "remaining": 0, "plans": [{"name": "pro", "limit": 100}],
    }  # fmt: skip
    with acting(Call()):
        for _ in range(2):
            await accounts.ReleaseQuota(pb.ReleaseQuotaRequest(workspace="acme", reservation="endpoints/acme/a"))
    await reserve(accounts, "endpoints", "endpoints/acme/c")
    with pytest.raises(Invalid, match="must be one of") as unknown:
        await reserve(accounts, "endpoint", "x")
    assert unknown.value.errors[0].suggestions == ("endpoints",)
    with acting(Call()), pytest.raises(NotFound, match="nowhere"):
        await accounts.ReserveQuota(pb.ReserveQuotaRequest(workspace="nowhere", metric="endpoints", reservation="x", amount=1))


async def test_two_who_ask_at_once_do_not_both_get_the_last(accounts: Client) -> None:
    await new_workspace(accounts, "acme", "ada@acme.test")
    asked = [reserve(accounts, "endpoints", f"endpoints/acme/{n}") for n in range(10)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, QuotaExceeded) for answer in answers) == 8


async def test_a_dead_gateways_block_frees_itself(accounts: Client, clock: FakeClock) -> None:
    await new_workspace(accounts, "acme", "ada@acme.test")
    assert (await reserve(accounts, "predictions", "gateway/g1/1", 9_990)).remaining == 10
    with pytest.raises(QuotaExceeded, match="10000 predictions a month and 10 are left, and 11 more were asked for; wait until 2026-10-01"):
        await reserve(accounts, "predictions", "gateway/g2/1", 11)
    assert (await reserve(accounts, "predictions", "gateway/g2/1", 100, at_least=1)).granted == 10
    await reserve(accounts, "cpu_seconds", "training-jobs/acme/j1", 36_000)
    clock.advance(3601)
    assert (await reserve(accounts, "predictions", "gateway/g3/1", 10_000)).granted == 10_000
    with pytest.raises(QuotaExceeded, match="CPU seconds"):
        await reserve(accounts, "cpu_seconds", "training-jobs/acme/j2", 1)
    with pytest.raises(QuotaExceeded, match="allows no GPU seconds; change to pro"):
        await reserve(accounts, "gpu_seconds", "training-jobs/acme/j2", 1)


async def test_keys_and_members_are_counted_where_they_are(accounts: Client) -> None:
    await new_workspace(accounts, "acme", "ada@acme.test")
    with as_member("acme", "ada@acme.test"):
        for n in range(4):
            key = (await accounts.CreateApiKey(pb.CreateApiKeyRequest(name=f"k{n}"))).api_key
        with pytest.raises(QuotaExceeded, match="5 API keys and 5 are in use; revoke one, or change to pro"):
            await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k5"))
        await accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=key.id))
        await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k5"))
        for n in range(2):
            await accounts.SetMember(pb.SetMemberRequest(email=f"m{n}@acme.test", role=ROLE_VIEWER))
        with pytest.raises(QuotaExceeded, match="3 members and 3 are in use"):
            await accounts.SetMember(pb.SetMemberRequest(email="m3@acme.test", role=ROLE_VIEWER))
        with pytest.raises(NotFound, match="the key named 'k0' has the id key-"):
            await accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id="k0"))


# -- money


async def use(database: Database, quantity: float, event_id: str, time: float, metric: str = "cpu_seconds") -> None:
    async with database.unit() as unit:
        await handlers.record_use(
            unit,
            source="/lepton/compute",
            event_id=event_id,
            workspace="default",
            metric=metric,
            resource="training-jobs/j1",
            quantity=quantity,
            time=time,
        )


async def test_use_becomes_an_invoice_once(accounts: Client, database: Database, clock: FakeClock) -> None:
    await use(database, 100.5, "a1", clock())
    await use(database, 0.25, "a2", clock())
    with as_member("default", OWNER, ROLE_OPERATOR):
        usage = await accounts.GetUsage(pb.GetUsageRequest())
        assert [(line.metric, line.quantity, line.amount.micros) for line in usage.lines] == [
            ("cpu_seconds", 100.75, 1407 + 4),
            ("plan_months", 1, 20_000_000),
        ]
        assert usage.total.micros == 20_001_411
        assert {q.metric: q.used for q in usage.quotas}["cpu_seconds"] == 101
        [draft] = (await accounts.ListInvoices(pb.ListInvoicesRequest())).invoices
        assert (draft.state, draft.number, draft.total) == (billing_pb2.INVOICE_STATE_DRAFT, "", usage.total)
        issued = await accounts.CreateInvoice(pb.CreateInvoiceRequest())
        assert (issued.number, issued.period, issued.total) == ("INV-2026-09-000001", "2026-09", usage.total)
        assert list(issued.lines) == list(usage.lines)
        with pytest.raises(Conflict, match="since invoice INV-2026-09-000001"):
            await accounts.CreateInvoice(pb.CreateInvoiceRequest())
        await use(database, 1, "a3", clock())
        second = await accounts.CreateInvoice(pb.CreateInvoiceRequest())
        assert (second.number, second.total.micros) == ("INV-2026-09-000002", 14)
        assert await accounts.GetInvoice(pb.GetInvoiceRequest(number=issued.number)) == issued
        listed, token = [], ""
        while True:
            page = await accounts.ListInvoices(pb.ListInvoicesRequest(page_size=1, page_token=token))
            listed += page.invoices
            if not (token := page.next_page_token):
                break
        assert [i.number for i in listed] == ["", second.number, issued.number]
        assert listed[0].total.micros == 0
    assert (await events(database)).count("InvoiceIssued") == 2


async def test_a_month_that_is_wrong_is_said(accounts: Client) -> None:
    with as_member("default", OWNER), pytest.raises(Invalid, match="a month such as 2026-11"):
        await accounts.GetUsage(pb.GetUsageRequest(period="2026-13"))
