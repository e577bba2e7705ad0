"""Who belongs to a workspace, as what."""

from libs.db import Unit
from libs.errors import NotFound
from services.accounts import repository, wire
from services.accounts.domain.roles import effective, keeps_an_owner, may_give, stored
from services.accounts.handlers.quotas import take
from services.accounts.tables import Member, Workspace


async def set_member(unit: Unit, *, workspace: str, role: int, email: str, asked: int, now: float) -> tuple[Member, Workspace]:
    """Adds a member with the role `asked` for, or changes theirs; the caller has `role`."""
    found = await _lock(unit, workspace)
    wanted = stored(asked, first=found.first)
    may_give(role, effective(wanted, first=found.first), "making somebody a member")
    email = email.lower()
    member = await repository.member(unit.session, workspace, email)
    if member is None:
        await take(unit, workspace=found, metric="members", amount=1, now=now)
        member = Member(workspace=workspace, email=email, role=wanted, create_time=now)
        unit.session.add(member)
        return member, found
    may_give(role, effective(member.role, first=found.first), "changing a member")
    keeps_an_owner(await repository.owners(unit.session, workspace), member.role, wanted)
    member.role = wanted
    return member, found


async def delete_member(unit: Unit, *, workspace: str, role: int, email: str, now: float) -> None:
    """Removes a member and revokes their keys of this workspace."""
    found = await _lock(unit, workspace)
    member = await repository.member(unit.session, workspace, email.lower())
    if member is None:
        everybody = [each.email for each in await repository.members(unit.session, workspace)]
        raise NotFound.of("member", email, everybody)
    may_give(role, effective(member.role, first=found.first), "removing a member")
    keeps_an_owner(await repository.owners(unit.session, workspace), member.role, None)
    for key in await repository.live_keys(unit.session, workspace, member.email):
        key.revoke(now)
        await unit.emit(wire.api_key_revoked(key))
    await repository.delete_member(unit.session, member)


async def _lock(unit: Unit, workspace: str) -> Workspace:
    found = await repository.lock_workspace(unit.session, workspace)
    if found is None:
        raise NotFound(f"there is no workspace '{workspace}'")
    return found
