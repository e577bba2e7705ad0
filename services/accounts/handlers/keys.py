"""API keys: making, revoking, and who calls with one."""

from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit, new_id
from libs.errors import Forbidden, NotFound, Unauthenticated, Violation, near
from services.accounts import repository, wire
from services.accounts.domain import secrets
from services.accounts.domain.roles import Role, effective, may_give, stored
from services.accounts.handlers.quotas import take
from services.accounts.tables import ApiKey, Member, Workspace

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


async def is_confined(session: AsyncSession, *, workspace: str, member: str, key_id: str) -> bool:
    """Whether the calling key may know no workspace but its own; one that is not this member's in this workspace may not either.

    Calls without a key are other services', in a name that they do not choose.
    """
    if not key_id:
        return False
    key = await repository.api_key(session, workspace, key_id)
    return key is None or key.member != member or key.confined


async def create_api_key(
    unit: Unit, *, workspace: str, member: str, role: int, name: str, asked: int, now: float, key_id: str = "", whose: str = ""
) -> tuple[ApiKey, str]:
    """A key of the member `whose` (default: the calling `member`, who has `role` and calls by `key_id`), and its secret.

    It has the role `asked` for, or without one the most that both may have. What a confined key makes is confined.
    """
    found = await repository.lock_workspace(unit.session, workspace)
    caller = await repository.member(unit.session, workspace, member)
    if found is None or caller is None:
        raise Forbidden(f"{member} is no member of workspace {workspace} any more")
    role = min(role, effective(caller.role, first=found.first))
    whose = whose.lower() or member
    owner = await _owner(unit.session, workspace, whose)
    theirs = effective(owner.role, first=found.first)
    wanted = stored(asked or min(role, theirs), first=found.first)
    may_give(role, effective(wanted, first=found.first), "making a key")
    if wanted > owner.role:
        raise Forbidden(f"{whose} is {_a(theirs.word)} of workspace {workspace}, and a key for them has at most that role")
    confined = whose != member or await is_confined(unit.session, workspace=workspace, member=member, key_id=key_id)
    await take(unit, workspace=found, metric="api_keys", amount=1, now=now)
    secret = secrets.new_secret()
    return await add_key(unit, workspace=found, member=whose, role=wanted, name=name, secret=secret, now=now, confined=confined)


async def add_key(
    unit: Unit, *, workspace: Workspace, member: str, role: int, name: str, secret: str, now: float, confined: bool = False
) -> tuple[ApiKey, str]:
    """Stores a key for `secret`, whatever the quota."""
    key = ApiKey(
        id=new_id("key"),
        workspace=workspace.name,
        member=member,
        name=name,
        prefix=secrets.prefix(secret),
        sha256=secrets.digest(secret),
        role=role,
        confined=confined,
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


async def _owner(session: AsyncSession, workspace: str, email: str) -> Member:
    found = await repository.member(session, workspace, email)
    if found is None:
        hints = near(email, [each.email for each in await repository.members(session, workspace)])
        advice = f"did you mean {' or '.join(hints)}?" if hints else f"add them first: PUT /v1/members/{email}"
        raise NotFound(
            f"{email} is no member of workspace {workspace}; {advice}",
            errors=[Violation("member", f"'{email}' is no member", tuple(hints))],
        )
    return found


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
