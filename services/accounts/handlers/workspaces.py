"""Making, seeing and changing workspaces."""

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit
from libs.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Violation, near
from services.accounts import repository, wire
from services.accounts.domain import secrets
from services.accounts.domain.quotas import Limits, fits
from services.accounts.domain.roles import Role
from services.accounts.handlers.billing import charge_plan
from services.accounts.handlers.keys import add_key
from services.accounts.handlers.quotas import quotas
from services.accounts.handlers.usage import settle_storage
from services.accounts.tables import ApiKey, Member, Plan, Workspace

TRIAL = "trial"


async def create_workspace(
    unit: Unit, *, member: str, role: int, name: str, display_name: str, plan: str, owned_limit: int, now: float, confined: bool = False
) -> tuple[Workspace, ApiKey, str]:
    """A workspace owned by the calling member, who has `role` in theirs; its first key; and that one's secret."""
    if confined:
        raise Forbidden(
            f"this key was made for {member} by somebody else, so it cannot make workspaces in that name; "
            "use a key that its member has made, or ask the operator for a workspace"
        )
    if plan not in ("", TRIAL) and role < Role.OWNER:
        raise Forbidden(f"a workspace on the {plan} plan needs a caller with the role owner; make it on trial and change its plan later")
    found = await find_plan(unit.session, plan or TRIAL)
    owned = await repository.owned(unit.session, member)
    if role < Role.OPERATOR and owned >= owned_limit:
        raise QuotaExceeded(
            f"{member} owns {owned} workspaces and may own {owned_limit}; use one of those, or ask the operator",
            meta={"metric": "workspaces", "limit": owned_limit, "used": owned, "remaining": 0, "plans": []},
        )
    taken = Conflict(f"the name '{name}' is taken; choose another one", code="name_taken")
    workspace = Workspace(name=name, display_name=display_name or name, plan=found.name, create_time=now)
    return await add_workspace(unit, workspace=workspace, owner=member, taken=taken)


async def add_workspace(unit: Unit, *, workspace: Workspace, owner: str, taken: Conflict | None = None) -> tuple[Workspace, ApiKey, str]:
    """Stores a workspace, its owner and a first key; charges the plan's month."""
    await open_workspace(unit, workspace=workspace, owner=owner, taken=taken)
    key, secret = await add_key(
        unit,
        workspace=workspace,
        member=owner,
        role=Role.OWNER,
        name="first",
        secret=secrets.new_secret(),
        now=workspace.create_time,
    )
    return workspace, key, secret


async def open_workspace(unit: Unit, *, workspace: Workspace, owner: str, taken: Conflict | None = None) -> None:
    """Stores a workspace and its owner; charges the plan's month."""
    if await repository.workspace(unit.session, workspace.name):
        raise taken or Conflict(f"workspace '{workspace.name}' exists", code="name_taken")
    await unit.insert(workspace, taken=taken)
    await unit.insert(Member(workspace=workspace.name, email=owner, role=Role.OWNER, create_time=workspace.create_time))
    await unit.emit(wire.workspace_created(workspace))
    await charge_plan(unit, workspace=workspace, now=workspace.create_time)


async def get_workspace(
    session: AsyncSession, *, name: str, member: str, role: int, only: str | None = None
) -> tuple[Workspace, int | None]:
    """With the caller's stored role in it; operators see every workspace, others those of which they are members.

    A confined key is a member of `only` its own.
    """
    workspace = await repository.workspace(session, name)
    own = await repository.member(session, name, member) if only in (None, name) else None
    if workspace is None or (own is None and role < Role.OPERATOR):
        names = [each.name for each, _ in await repository.workspaces_of(session, member, only=only)]
        hints = near(name, names)
        hint = f"; did you mean {' or '.join(hints)}?" if hints else ""
        raise NotFound(
            f"there is no workspace '{name}' of which {member} is a member{hint}",
            errors=[Violation("name", f"'{name}' does not exist", tuple(hints))] if hints else (),
        )
    return workspace, own.role if own else None


async def update_workspace(
    unit: Unit,
    *,
    workspace: str,
    member: str,
    role: int,
    name: str,
    display_name: str | None,
    plan: str | None,
    now: float,
    only: str | None = None,
) -> tuple[Workspace, int | None]:
    """Changes what is given. The caller acts in `workspace`; only operators change another one."""
    found, own = await get_workspace(unit.session, name=name, member=member, role=role, only=only)
    if name != workspace and role < Role.OPERATOR:
        raise Forbidden(f"this key acts in workspace {workspace}; use a key of {name}")
    await repository.lock_workspace(unit.session, name)
    if display_name is not None:
        found.display_name = display_name or found.name
    if plan is not None and plan != found.plan:
        await change_plan(unit, workspace=found, plan=plan, now=now)
    return found, own


async def change_plan(unit: Unit, *, workspace: Workspace, plan: str, now: float) -> None:
    """Raises Conflict where more exists than the new plan allows."""
    wanted = await find_plan(unit.session, plan)
    fits(await quotas(unit.session, workspace=workspace, now=now), Limits(wanted.name, wanted.quotas))
    # What has been stored until now is owed at the old plan's price.
    await settle_storage(unit, workspace=workspace.name, until=now)
    previous, workspace.plan = workspace.plan, wanted.name
    await charge_plan(unit, workspace=workspace, now=now)
    await unit.emit(wire.workspace_plan_changed(workspace, previous))


async def find_plan(session: AsyncSession, name: str) -> Plan:
    """Raises Invalid with the plans that there are."""
    plan = await session.get(Plan, name)
    if plan is None:
        names = [each.name for each in await repository.plans(session)]
        hints = tuple(near(name, names) or names)
        raise Invalid.of([Violation("plan", f"must be one of {', '.join(names)}; got '{name}'", hints)])
    return plan
