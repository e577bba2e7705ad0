"""gRPC of accounts."""

import time
from collections.abc import Callable
from typing import Any

from lepton.accounts.v1 import accounts_service_pb2 as pb
from lepton.accounts.v1 import billing_pb2, workspace_pb2
from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import NotFound
from libs.rpc import Identity, current_call
from libs.service.edge import Edge
from services.accounts import handlers, repository, wire
from services.accounts.domain.periods import period_of
from services.accounts.domain.pricing import summed
from services.accounts.domain.roles import Role
from services.accounts.settings import Settings
from services.accounts.tables import Workspace


class AccountsServicer(Edge, AccountsServiceServicer):
    """`clock` tells seconds since 1970."""

    def __init__(self, database: Database, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database)
        self.settings, self.clock = settings, clock

    @property
    def caller(self) -> Identity:
        return current_call().identity

    async def Authenticate(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:
        async with self.read() as session:
            caller = await handlers.authenticate(session, key_sha256=request.key_sha256)
            return pb.AuthenticateResponse(**caller._asdict())

    async def GetMe(self, request: pb.GetMeRequest, context: Any) -> pb.GetMeResponse:
        async with self.read() as session:
            workspace = await self._own(session)
            quotas = await handlers.quotas(session, workspace=workspace, now=self.clock())
            role = Role(self.caller.role)
            return pb.GetMeResponse(
                member=self.member,
                workspace=wire.workspace_message(workspace, role),
                role=wire.role_value(role),
                quotas=[wire.quota_message(quota) for quota in quotas],
            )

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, context: Any) -> pb.ListWorkspacesResponse:
        size, after = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            found = await repository.workspaces_of(session, self.member, after, size + 1, only=await self._only(session))
        messages = [wire.workspace_message(workspace, role) for workspace, role in found[:size]]
        return pb.ListWorkspacesResponse(workspaces=messages, next_page_token=_next(found, messages, size, "name"))

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, context: Any) -> pb.CreateWorkspaceResponse:
        async with self.unit(request) as unit:
            workspace, key, secret = await handlers.create_workspace(
                unit,
                member=self.member,
                role=self.caller.role,
                name=request.name,
                display_name=request.display_name,
                plan=request.plan,
                owned_limit=self.settings.workspaces_per_member,
                confined=await self._only(unit.session) is not None,
                now=self.clock(),
            )
            answer = pb.CreateWorkspaceResponse(
                workspace=wire.workspace_message(workspace, key.role), api_key=wire.api_key_message(key, first=False)
            )
            # Remembered without the secret, which is kept nowhere.
            await unit.reply(answer)
        answer.secret = secret
        return answer

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Any) -> workspace_pb2.Workspace:
        async with self.read() as session:
            workspace, role = await handlers.get_workspace(
                session, name=request.name, member=self.member, role=self.caller.role, only=await self._only(session)
            )
            return wire.workspace_message(workspace, role)

    async def UpdateWorkspace(self, request: pb.UpdateWorkspaceRequest, context: Any) -> workspace_pb2.Workspace:
        async with self.unit(request) as unit:
            workspace, role = await handlers.update_workspace(
                unit,
                workspace=self.workspace,
                member=self.member,
                role=self.caller.role,
                name=request.name,
                display_name=request.display_name if request.HasField("display_name") else None,
                plan=request.plan if request.HasField("plan") else None,
                only=await self._only(unit.session),
                now=self.clock(),
            )
            return await unit.reply(wire.workspace_message(workspace, role))

    async def ListMembers(self, request: pb.ListMembersRequest, context: Any) -> pb.ListMembersResponse:
        size, after = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            workspace = await self._own(session)
            found = await repository.members(session, self.workspace, after, size + 1)
        messages = [wire.member_message(member, first=workspace.first) for member in found[:size]]
        return pb.ListMembersResponse(members=messages, next_page_token=_next(found, messages, size, "email"))

    async def SetMember(self, request: pb.SetMemberRequest, context: Any) -> workspace_pb2.Member:
        async with self.unit(request) as unit:
            member, workspace = await handlers.set_member(
                unit,
                workspace=self.workspace,
                role=self.caller.role,
                email=request.email,
                asked=request.role,
                now=self.clock(),
            )
            return await unit.reply(wire.member_message(member, first=workspace.first))

    async def DeleteMember(self, request: pb.DeleteMemberRequest, context: Any) -> pb.DeleteMemberResponse:
        async with self.unit(request) as unit:
            await handlers.delete_member(unit, workspace=self.workspace, role=self.caller.role, email=request.email, now=self.clock())
            return await unit.reply(pb.DeleteMemberResponse())

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Any) -> pb.ListApiKeysResponse:
        size, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            workspace = await self._own(session)
            found = await repository.api_keys(session, self.workspace, before, size + 1)
        messages = [wire.api_key_message(key, first=workspace.first) for key in found[:size]]
        return pb.ListApiKeysResponse(api_keys=messages, next_page_token=_next(found, messages, size, "id"))

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:
        async with self.unit(request) as unit:
            workspace = await self._own(unit.session)
            key, secret = await handlers.create_api_key(
                unit,
                workspace=self.workspace,
                member=self.member,
                role=self.caller.role,
                name=request.name,
                asked=request.role,
                key_id=self.caller.key_id,
                whose=request.member,
                now=self.clock(),
            )
            answer = pb.CreateApiKeyResponse(api_key=wire.api_key_message(key, first=workspace.first))
            await unit.reply(answer)
        answer.secret = secret
        return answer

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, context: Any) -> workspace_pb2.ApiKey:
        async with self.unit(request) as unit:
            workspace = await self._own(unit.session)
            key = await handlers.delete_api_key(unit, workspace=self.workspace, role=self.caller.role, id=request.id, now=self.clock())
            return await unit.reply(wire.api_key_message(key, first=workspace.first))

    async def ListPlans(self, request: pb.ListPlansRequest, context: Any) -> pb.ListPlansResponse:
        async with self.read() as session:
            return pb.ListPlansResponse(plans=[wire.plan_message(plan) for plan in await repository.plans(session)])

    async def SetPlan(self, request: pb.SetPlanRequest, context: Any) -> workspace_pb2.Plan:
        async with self.unit(request) as unit:
            plan = await handlers.set_plan(unit, name=request.name, changes=wire.plan_changes(request), now=self.clock())
            return await unit.reply(wire.plan_message(plan))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        period = request.period or period_of(self.clock())
        async with self.read() as session:
            workspace = await self._own(session)
            stored = await handlers.unsettled_storage(session, workspace=workspace, now=self.clock())
            lines = summed([*await repository.lines(session, self.workspace, period=period), *stored.get(period, [])])
            quotas = await handlers.quotas(session, workspace=workspace, now=self.clock(), period=period)
        return pb.GetUsageResponse(
            period=period,
            lines=[wire.line_message(line) for line in lines],
            total=wire.money(sum(line.amount for line in lines)),
            quotas=[wire.quota_message(quota) for quota in quotas],
        )

    async def ListInvoices(self, request: pb.ListInvoicesRequest, context: Any) -> pb.ListInvoicesResponse:
        size, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            messages = [] if before else await self._drafts(session)
            # On the first page the drafts take their places; a page of nothing else is followed by one of invoices.
            room = max(size - len(messages), 0)
            found = await repository.invoices(session, self.workspace, before, room + 1)
            for invoice in found[:room]:
                lines = await repository.lines(session, self.workspace, invoice=invoice.number)
                messages.append(wire.invoice_message(invoice, lines))
        token = page_token(found[room - 1].id if room else "~") if len(found) > room else ""
        return pb.ListInvoicesResponse(invoices=messages, next_page_token=token)

    async def GetInvoice(self, request: pb.GetInvoiceRequest, context: Any) -> billing_pb2.Invoice:
        async with self.read() as session:
            invoice = await repository.invoice(session, self.workspace, request.number)
            if invoice is None:
                raise NotFound.of("invoice", request.number)
            return wire.invoice_message(invoice, await repository.lines(session, self.workspace, invoice=invoice.number))

    async def CreateInvoice(self, request: pb.CreateInvoiceRequest, context: Any) -> billing_pb2.Invoice:
        async with self.unit(request) as unit:
            invoice, lines = await handlers.create_invoice(unit, workspace=self.workspace, now=self.clock())
            return await unit.reply(wire.invoice_message(invoice, lines))

    async def GetEarnings(self, request: pb.GetEarningsRequest, context: Any) -> pb.GetEarningsResponse:
        period = request.period or period_of(self.clock())
        async with self.read() as session:
            lines = await repository.earning_lines(session, self.workspace, period)
        return pb.GetEarningsResponse(
            period=period,
            lines=[wire.earning_message(line) for line in lines],
            net=wire.money(sum(line.net for line in lines)),
        )

    async def ReserveQuota(self, request: pb.ReserveQuotaRequest, context: Any) -> pb.ReserveQuotaResponse:
        async with self.unit(request) as unit:
            granted, quota = await handlers.reserve_quota(
                unit,
                workspace=request.workspace,
                metric=request.metric,
                reservation=request.reservation,
                amount=request.amount,
                at_least=request.at_least if request.HasField("at_least") else None,
                expires_in=self.settings.reservation_seconds,
                now=self.clock(),
            )
            return await unit.reply(pb.ReserveQuotaResponse(granted=granted, limit=quota.limit, remaining=quota.remaining))

    async def ReleaseQuota(self, request: pb.ReleaseQuotaRequest, context: Any) -> pb.ReleaseQuotaResponse:
        async with self.unit(request) as unit:
            await handlers.release_quota(unit, workspace=request.workspace, reservation=request.reservation, metric=request.metric)
            return await unit.reply(pb.ReleaseQuotaResponse())

    async def _own(self, session: Any) -> Workspace:
        """The workspace in which the caller acts."""
        workspace = await repository.workspace(session, self.workspace)
        if workspace is None:
            raise NotFound(f"there is no workspace '{self.workspace}'")
        return workspace

    async def _only(self, session: Any) -> str | None:
        """The workspace beyond which a confined key sees nothing; None for any other caller."""
        confined = await handlers.is_confined(session, workspace=self.workspace, member=self.member, key_id=self.caller.key_id)
        return self.workspace if confined else None

    async def _drafts(self, session: Any) -> list[billing_pb2.Invoice]:
        """Of the running month, and of earlier ones that are not issued yet; newest first."""
        now = self.clock()
        stored = await handlers.unsettled_storage(session, workspace=await self._own(session), now=now)
        periods = {period_of(now), *stored, *await repository.open_periods(session, self.workspace)}
        drafts = []
        for period in sorted(periods, reverse=True):
            lines = await repository.lines(session, self.workspace, period=period, invoice="")
            drafts.append(wire.draft_message(period, summed([*lines, *stored.get(period, [])])))
        return drafts


def _next(found: list[Any], messages: list[Any], size: int, key: str) -> str:
    """The token of the next page, where there is one: `found` was asked for one more than the page holds."""
    return page_token(getattr(messages[-1], key)) if len(found) > size else ""
