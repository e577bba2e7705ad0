"""The first workspace: there from the first start on, with an owner and a key that works."""

from enum import Enum
from typing import NamedTuple

from libs.db import Unit
from libs.errors import Conflict
from services.accounts import repository, wire
from services.accounts.domain import secrets
from services.accounts.domain.roles import Role
from services.accounts.handlers.keys import add_key
from services.accounts.handlers.workspaces import open_workspace
from services.accounts.tables import Member, Workspace


class KeyFate(Enum):
    """What became of the first key."""

    KEPT = "kept"
    ADDED = "added"
    REVIVED = "revived"
    MADE = "made"
    MISSING = "missing"


class Bootstrapped(NamedTuple):
    """`secret` only of a key that was made."""

    key: KeyFate
    secret: str = ""


async def bootstrap_workspace(unit: Unit, *, name: str, member: str, key: str, may_make_key: bool, now: float) -> Bootstrapped:
    """Brings the first workspace, its owner and their key about, as far as they are not there.

    A given `key` works afterwards, even if it had been revoked. Without one, and with no live key anywhere, one is made where
    `may_make_key`: its caller must show the secret, for it is nowhere else.
    """
    if key:
        secrets.check_given(key)
    workspace = await _workspace(unit, name, member.lower(), now)
    if not key:
        if await repository.any_live_key(unit.session):
            return Bootstrapped(KeyFate.KEPT)
        if not may_make_key:
            return Bootstrapped(KeyFate.MISSING)
        return Bootstrapped(KeyFate.MADE, await _add(unit, workspace, member.lower(), secrets.new_secret(), now))
    known = await repository.api_key_by_sha256(unit.session, secrets.digest(key))
    if known is None:
        await _add(unit, workspace, member.lower(), key, now)
        return Bootstrapped(KeyFate.ADDED)
    if known.workspace != name:
        raise Conflict("the bootstrap key is a key of another workspace; give one that is not in use")
    owner = await repository.member(unit.session, name, known.member)
    works = known.revoke_time is None and known.role >= Role.OWNER and not known.confined
    if works and owner is not None and owner.role >= Role.OWNER:
        return Bootstrapped(KeyFate.KEPT)
    known.revoke_time, known.role, known.member, known.confined = None, Role.OWNER, member.lower(), False
    await unit.emit(wire.api_key_created(known, first=True))
    return Bootstrapped(KeyFate.REVIVED)


async def _workspace(unit: Unit, name: str, member: str, now: float) -> Workspace:
    workspace = await repository.first_workspace(unit.session)
    if workspace is None:
        workspace = Workspace(name=name, display_name=name, plan="pro", first=True, create_time=now)
        await open_workspace(unit, workspace=workspace, owner=member)
        return workspace
    if workspace.name != name:
        kept = workspace.name
        raise Conflict(f"the first workspace is '{kept}' and cannot become '{name}'; set bootstrap_workspace to '{kept}'")
    owner = await repository.member(unit.session, name, member)
    if owner is None:
        await unit.insert(Member(workspace=name, email=member, role=Role.OWNER, create_time=now))
    else:
        owner.role = Role.OWNER
    return workspace


async def _add(unit: Unit, workspace: Workspace, member: str, secret: str, now: float) -> str:
    await add_key(unit, workspace=workspace, member=member, role=Role.OWNER, name="bootstrap", secret=secret, now=now)
    return secret
