"""API keys: making, revoking, and who calls with one."""

from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit, new_id
from libs.errors import Forbidden, NotFound, Unauthenticated
from services.accounts import repository, wire
from services.accounts.domain import secrets
from services.accounts.domain.roles import Role, effective, may_give, stored
from services.accounts.handlers.quotas import take
from services.accounts.tables import ApiKey, Workspace

UNKNOWN = "the API key is unknown or was revoked; make a new one in the workspace's settings or ask its administrator"


class Caller(NamedTuple):
    """Who a key speaks for."""

    workspace: str
    member: str
    role: Role
    api_key_id: str


async def authenticate(session: AsyncSession, *, key_sha256: bytes) -> Caller:
    """Raises Unauthenticated, in the same words whatever the reason."""
    key = await repository.api_key_by_sha256(session, key_sha256)
    if key is None or key.revoke_time is not None:
        raise Unauthenticated(UNKNOWN)
    workspace = await repository.workspace(session, key.workspace)
    member = await repository.member(session, key.workspace, key.member)
    if workspace is None or member is None:
        raise Unauthenticated(UNKNOWN)
    role = effective(min(key.role, member.role), first=workspace.first)
    return Caller(workspace.name, member.email, role, key.id)


async def create_api_key(unit: Unit, *, workspace: str, member: str, role: int, name: str, asked: int, now: float) -> tuple[ApiKey, str]:
    """A key of the calling member, who has `role`, with the role `asked` for (0: the same); and its secret."""
    found = await repository.lock_workspace(unit.session, workspace)
    owner = await repository.member(unit.session, workspace, member)
    if found is None or owner is None:
        raise Forbidden(f"{member} is no member of workspace {workspace} any more")
    role = min(role, effective(owner.role, first=found.first))
    wanted = stored(asked or role, first=found.first)
    may_give(role, effective(wanted, first=found.first), "making a key")
    await take(unit, workspace=found, metric="api_keys", amount=1, now=now)
    return await add_key(unit, workspace=found, member=member, role=wanted, name=name, secret=secrets.new_secret(), now=now)


async def add_key(unit: Unit, *, workspace: Workspace, member: str, role: int, name: str, secret: str, now: float) -> tuple[ApiKey, str]:
    """Stores a key for `secret`, whatever the quota."""
    key = ApiKey(
        id=new_id("key"),
        workspace=workspace.name,
        member=member,
        name=name,
        prefix=secrets.prefix(secret),
        sha256=secrets.digest(secret),
        role=role,
        create_time=now,
    )
    await unit.insert(key)
    await unit.emit(wire.api_key_created(key, first=workspace.first))
    return key, secret


async def delete_api_key(unit: Unit, *, workspace: str, role: int, id: str, now: float) -> ApiKey:
    """Revokes for good; a key above the caller's role is not theirs to revoke."""
    found = await repository.lock_workspace(unit.session, workspace)
    key = await repository.api_key(unit.session, workspace, id)
    if found is None or key is None:
        names = {each.name: each.id for each in await repository.api_keys(unit.session, workspace)}
        hint = f"; the key named '{id}' has the id {names[id]}" if id in names else ""
        raise NotFound(f"there is no API key '{id}' in this workspace{hint}")
    may_give(role, effective(key.role, first=found.first), "revoking a key")
    if key.revoke(now):
        await unit.emit(wire.api_key_revoked(key))
    return key
