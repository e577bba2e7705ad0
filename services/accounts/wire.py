"""Entities as messages, and the events of accounts."""

from collections.abc import Iterable
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from lepton.accounts.v1 import accounts_service_pb2, billing_pb2, events_pb2, workspace_pb2
from lepton.common.v1 import options_pb2, resource_pb2
from libs.events import Event
from services.accounts.domain.plans import CURRENCY, PlanChanges, Price
from services.accounts.domain.pricing import MICROS, EarningLine, Line
from services.accounts.domain.quotas import METRICS, Quota
from services.accounts.domain.roles import effective
from services.accounts.tables import ApiKey, Invoice, Member, Plan, Workspace


def role_value(role: int) -> options_pb2.Role:
    return cast(options_pb2.Role, int(role))


def money(micros: int) -> resource_pb2.Money:
    return resource_pb2.Money(currency=CURRENCY, micros=micros)


def timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * MICROS))
    return stamp


def workspace_message(workspace: Workspace, role: int | None = None) -> workspace_pb2.Workspace:
    """`role` is the stored one of the caller; None where the caller is no member."""
    return workspace_pb2.Workspace(
        name=workspace.name,
        display_name=workspace.display_name,
        plan=workspace.plan,
        create_time=timestamp(workspace.create_time),
        role=role_value(effective(role, first=workspace.first)) if role else None,
    )


def member_message(member: Member, *, first: bool) -> workspace_pb2.Member:
    return workspace_pb2.Member(
        email=member.email, role=role_value(effective(member.role, first=first)), create_time=timestamp(member.create_time)
    )


def api_key_message(key: ApiKey, *, first: bool) -> workspace_pb2.ApiKey:
    return workspace_pb2.ApiKey(
        id=key.id,
        name=key.name,
        prefix=key.prefix,
        role=role_value(effective(key.role, first=first)),
        member=key.member,
        create_time=timestamp(key.create_time),
        revoke_time=None if key.revoke_time is None else timestamp(key.revoke_time),
        confined=key.confined,
    )


def plan_message(plan: Plan) -> workspace_pb2.Plan:
    return workspace_pb2.Plan(
        name=plan.name,
        display_name=plan.display_name,
        monthly_price=money(plan.monthly_price),
        quotas=[workspace_pb2.PlanQuota(metric=metric, limit=plan.quotas.get(metric, 0)) for metric in METRICS],
        prices=[workspace_pb2.PlanPrice(metric=metric, unit_price=money(price)) for metric, price in plan.prices.items()],
    )


def plan_changes(request: accounts_service_pb2.SetPlanRequest) -> PlanChanges:
    """What is asked for, as it is."""
    return PlanChanges(
        display_name=request.display_name if request.HasField("display_name") else None,
        monthly_price=_price(request.monthly_price) if request.HasField("monthly_price") else None,
        quotas=[(quota.metric, quota.limit) for quota in request.quotas],
        prices=[(price.metric, _price(price.unit_price) if price.HasField("unit_price") else None) for price in request.prices],
    )


def _price(money: resource_pb2.Money) -> Price:
    return Price(money.currency, money.micros)


def quota_message(quota: Quota) -> workspace_pb2.Quota:
    return workspace_pb2.Quota(metric=quota.metric, limit=quota.limit, used=quota.used, remaining=quota.remaining)


def line_message(line: Line) -> billing_pb2.UsageLine:
    return billing_pb2.UsageLine(
        metric=line.metric,
        resource=line.resource,
        quantity=line.quantity / MICROS,
        unit_price=money(line.unit_price),
        amount=money(line.amount),
    )


def earning_message(line: EarningLine) -> billing_pb2.EarningLine:
    return billing_pb2.EarningLine(
        listing=line.listing,
        buyer=line.buyer,
        quantity=line.quantity / MICROS,
        gross=money(line.gross),
        fee=money(line.fee),
        net=money(line.net),
    )


def invoice_message(invoice: Invoice, lines: Iterable[Line]) -> billing_pb2.Invoice:
    return billing_pb2.Invoice(
        number=invoice.number,
        period=invoice.period,
        state=billing_pb2.INVOICE_STATE_ISSUED,
        lines=[line_message(line) for line in lines],
        total=money(invoice.total),
        issue_time=timestamp(invoice.issue_time),
    )


def draft_message(period: str, lines: list[Line]) -> billing_pb2.Invoice:
    return billing_pb2.Invoice(
        period=period,
        state=billing_pb2.INVOICE_STATE_DRAFT,
        lines=[line_message(line) for line in lines],
        total=money(sum(line.amount for line in lines)),
    )


def workspace_created(workspace: Workspace) -> Event:
    return Event.of(events_pb2.WorkspaceCreated(workspace=workspace_message(workspace)), key=workspace.name)


def workspace_plan_changed(workspace: Workspace, previous: str) -> Event:
    message = events_pb2.WorkspacePlanChanged(workspace=workspace.name, previous_plan=previous, plan=workspace.plan)
    return Event.of(message, key=workspace.name)


def api_key_created(key: ApiKey, *, first: bool) -> Event:
    message = events_pb2.ApiKeyCreated(workspace=key.workspace, api_key=api_key_message(key, first=first))
    return Event.of(message, key=key.id)


def api_key_revoked(key: ApiKey) -> Event:
    return Event.of(events_pb2.ApiKeyRevoked(workspace=key.workspace, api_key_id=key.id), key=key.id)


def invoice_issued(invoice: Invoice, lines: list[Line]) -> Event:
    message = events_pb2.InvoiceIssued(workspace=invoice.workspace, invoice=invoice_message(invoice, lines))
    return Event.of(message, key=invoice.number)
