"""The account: workspaces, members, keys, plans, and what it costs and earns."""

from collections.abc import Mapping, Sequence
from typing import Any

from leptonai._errors import InvalidInput
from leptonai._listings import price_json
from leptonai._refs import name_of
from leptonai._session import AsyncPages, AsyncSession, Call, Pages, Session, page_of, path
from leptonai._types import ApiKey, Earnings, Invoice, Me, Member, NewApiKey, NewWorkspace, Plan, Usage, Workspace


class Account:
    """`client.account`. Periods are calendar months in UTC, "2026-11"; by default the running one. Errors: APIError and its kin."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def me(self) -> Me:
        """Who calls, in which workspace, and what is left of its plan."""
        return self._session.run(Call("GET", path("me"), Me.from_json))

    def workspaces(self) -> Pages[Workspace]:
        """Those of which the caller is a member."""
        return Pages(self._session, page_of(("workspaces",), "workspaces", Workspace))

    def workspace(self, name: Any) -> Workspace:
        """One workspace."""
        return self._session.run(Call("GET", path("workspaces", name_of(name)), Workspace.from_json))

    def create_workspace(self, name: str, *, display_name: str = "", plan: str = "") -> NewWorkspace:
        """Makes a workspace owned by the caller (on the trial plan by default). `.secret` is its first key, told this once."""
        return self._session.run(_create_workspace(name, display_name, plan))

    def update_workspace(self, name: Any, *, display_name: str | None = None, plan: str | None = None) -> Workspace:
        """Changes display name or plan; a new plan's quotas and prices hold from now on."""
        return self._session.run(_update_workspace(name, display_name, plan))

    def members(self) -> Pages[Member]:
        """Everybody in the workspace."""
        return Pages(self._session, page_of(("members",), "members", Member))

    def set_member(self, email: str, role: str) -> Member:
        """Adds a member, or changes their role: viewer, editor, admin or owner."""
        return self._session.run(Call("PUT", path("members", email), Member.from_json, body={"role": role}))

    def delete_member(self, email: str) -> None:
        """Removes a member and revokes their keys."""
        self._session.run(Call("DELETE", path("members", email), _nothing))

    def api_keys(self) -> Pages[ApiKey]:
        """All keys, without their secrets."""
        return Pages(self._session, page_of(("api-keys",), "api_keys", ApiKey))

    def create_api_key(self, name: str, *, role: str = "", member: str = "") -> NewApiKey:
        """Makes a key for the caller, or for the member with that e-mail; role: at most what both have. `.secret` is told this once."""
        return self._session.run(_create_key(name, role, member))

    def revoke_api_key(self, key: Any) -> ApiKey:
        """Revokes a key, by its id, for good."""
        return self._session.run(Call("DELETE", path("api-keys", _key_id(key)), ApiKey.from_json))

    def plans(self) -> "Sequence[Plan]":
        """All plans with their quotas and prices."""
        return self._session.run(_plans())

    def set_plan(
        self,
        name: str,
        *,
        display_name: str | None = None,
        monthly_price: Any = None,
        quotas: Mapping[str, int] | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Adds a plan, which must name every metric, or changes what is given. Prices are USD a unit or Money. For operators."""
        return self._session.run(_set_plan(name, display_name, monthly_price, quotas, prices))

    def usage(self, period: str = "") -> Usage:
        """Use and cost of a month."""
        return self._session.run(Call("GET", path("usage"), Usage.from_json, query={"period": period}))

    def invoices(self) -> Pages[Invoice]:
        """Issued invoices, newest first, and the draft of the running month."""
        return Pages(self._session, page_of(("invoices",), "invoices", Invoice))

    def invoice(self, number: Any) -> Invoice:
        """One invoice."""
        return self._session.run(Call("GET", path("invoices", getattr(number, "number", number)), Invoice.from_json))

    def create_invoice(self) -> Invoice:
        """Issues an invoice now for all use that no invoice holds yet."""
        return self._session.run(Call("POST", path("invoices"), Invoice.from_json, body={}))

    def earnings(self, period: str = "") -> Earnings:
        """What others' calls have brought in, in a month."""
        return self._session.run(Call("GET", path("earnings"), Earnings.from_json, query={"period": period}))


class AsyncAccount:
    """As Account, for an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def me(self) -> Me:
        """As Account.me."""
        return await self._session.run(Call("GET", path("me"), Me.from_json))

    def workspaces(self) -> AsyncPages[Workspace]:
        """As Account.workspaces."""
        return AsyncPages(self._session, page_of(("workspaces",), "workspaces", Workspace))

    async def workspace(self, name: Any) -> Workspace:
        """As Account.workspace."""
        return await self._session.run(Call("GET", path("workspaces", name_of(name)), Workspace.from_json))

    async def create_workspace(self, name: str, *, display_name: str = "", plan: str = "") -> NewWorkspace:
        """As Account.create_workspace."""
        return await self._session.run(_create_workspace(name, display_name, plan))

    async def update_workspace(self, name: Any, *, display_name: str | None = None, plan: str | None = None) -> Workspace:
        """As Account.update_workspace."""
        return await self._session.run(_update_workspace(name, display_name, plan))

    def members(self) -> AsyncPages[Member]:
        """As Account.members."""
        return AsyncPages(self._session, page_of(("members",), "members", Member))

    async def set_member(self, email: str, role: str) -> Member:
        """As Account.set_member."""
        return await self._session.run(Call("PUT", path("members", email), Member.from_json, body={"role": role}))

    async def delete_member(self, email: str) -> None:
        """As Account.delete_member."""
        await self._session.run(Call("DELETE", path("members", email), _nothing))

    def api_keys(self) -> AsyncPages[ApiKey]:
        """As Account.api_keys."""
        return AsyncPages(self._session, page_of(("api-keys",), "api_keys", ApiKey))

    async def create_api_key(self, name: str, *, role: str = "", member: str = "") -> NewApiKey:
        """As Account.create_api_key."""
        return await self._session.run(_create_key(name, role, member))

    async def revoke_api_key(self, key: Any) -> ApiKey:
        """As Account.revoke_api_key."""
        return await self._session.run(Call("DELETE", path("api-keys", _key_id(key)), ApiKey.from_json))

    async def plans(self) -> "Sequence[Plan]":
        """As Account.plans."""
        return await self._session.run(_plans())

    async def set_plan(
        self,
        name: str,
        *,
        display_name: str | None = None,
        monthly_price: Any = None,
        quotas: Mapping[str, int] | None = None,
        prices: Mapping[str, Any] | None = None,
    ) -> Plan:
        """As Account.set_plan."""
        return await self._session.run(_set_plan(name, display_name, monthly_price, quotas, prices))

    async def usage(self, period: str = "") -> Usage:
        """As Account.usage."""
        return await self._session.run(Call("GET", path("usage"), Usage.from_json, query={"period": period}))

    def invoices(self) -> AsyncPages[Invoice]:
        """As Account.invoices."""
        return AsyncPages(self._session, page_of(("invoices",), "invoices", Invoice))

    async def invoice(self, number: Any) -> Invoice:
        """As Account.invoice."""
        return await self._session.run(Call("GET", path("invoices", getattr(number, "number", number)), Invoice.from_json))

    async def create_invoice(self) -> Invoice:
        """As Account.create_invoice."""
        return await self._session.run(Call("POST", path("invoices"), Invoice.from_json, body={}))

    async def earnings(self, period: str = "") -> Earnings:
        """As Account.earnings."""
        return await self._session.run(Call("GET", path("earnings"), Earnings.from_json, query={"period": period}))


def _nothing(_: Any) -> None:
    return None


def _key_id(key: Any) -> str:
    return str(getattr(key, "id", key))


def _create_workspace(name: str, display_name: str, plan: str) -> Call[NewWorkspace]:
    body = {"name": name, "display_name": display_name, "plan": plan}
    return Call("POST", path("workspaces"), NewWorkspace.from_json, body={key: value for key, value in body.items() if value})


def _update_workspace(name: Any, display_name: str | None, plan: str | None) -> Call[Workspace]:
    body = {key: value for key, value in (("display_name", display_name), ("plan", plan)) if value is not None}
    if not body:
        raise InvalidInput("there is nothing to change", "name display_name= or plan=")
    return Call("PATCH", path("workspaces", name_of(name)), Workspace.from_json, body=body)


def _create_key(name: str, role: str, member: str) -> Call[NewApiKey]:
    body = {"name": name, "role": role, "member": member}
    return Call("POST", path("api-keys"), NewApiKey.from_json, body={key: value for key, value in body.items() if value or key == "name"})


def _set_plan(
    name: str, display_name: str | None, monthly_price: Any, quotas: Mapping[str, int] | None, prices: Mapping[str, Any] | None
) -> Call[Plan]:
    body: dict[str, Any] = {} if display_name is None else {"display_name": display_name}
    if monthly_price is not None:
        body["monthly_price"] = price_json(monthly_price)["per_row"]
    if quotas:
        body["quotas"] = [{"metric": metric, "limit": limit} for metric, limit in quotas.items()]
    if prices:
        body["prices"] = [{"metric": metric, "unit_price": price_json(price)["per_row"]} for metric, price in prices.items()]
    return Call("PUT", path("plans", name), Plan.from_json, body=body)


def _plans() -> Call[list[Plan]]:
    def read(answer: Any) -> list[Plan]:
        return [Plan.from_json(item) for item in answer.get("plans") or []]

    return Call("GET", path("plans"), read)
