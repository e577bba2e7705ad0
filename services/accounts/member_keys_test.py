"""E-mails aren't verified: a key that somebody makes for a member opens their own workspace, and nothing that bears the same e-mail."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lepton.accounts.v1 import accounts_service_pb2 as pb
from lepton.common.v1.options_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_OPERATOR, ROLE_OWNER, ROLE_VIEWER
from libs.db import Database
from libs.errors import Forbidden, Invalid, NotFound
from libs.rpc import Call, Client, Identity, acting
from libs.testing import as_member
from services.accounts.main import bootstrap
from services.accounts.settings import Settings

ADA, EVE, BOB = "ada@acme.test", "eve@evil.test", "bob@evil.test"


async def identify(accounts: Client, secret: str) -> Identity:
    with acting(Call()):
        sha256 = hashlib.sha256(secret.encode()).digest()
        found = await accounts.Authenticate(pb.AuthenticateRequest(key_sha256=sha256))
    return Identity("gateway", found.workspace, found.member, found.role, found.api_key_id)


@contextmanager
def calling(identity: Identity) -> Iterator[None]:
    """As the gateway does, with the key's id."""
    with acting(Call(identity)):
        yield


async def own_key(accounts: Client, workspace: str, member: str) -> Identity:
    """A new workspace's first key, in its owner's hands."""
    with as_member("default", member, ROLE_OPERATOR):
        made = await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name=workspace, plan="pro"))
    return await identify(accounts, made.secret)


async def key_for(accounts: Client, maker: Identity, member: str, **more: Any) -> pb.CreateApiKeyResponse:
    with calling(maker):
        return await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k", member=member, **more))


async def add(accounts: Client, by: Identity, email: str, role: Any) -> None:
    with calling(by):
        await accounts.SetMember(pb.SetMemberRequest(email=email, role=role))


@pytest.fixture
async def eve(accounts: Client) -> Identity:
    """Owns evil, where she has made ada, who owns acme, a member."""
    await own_key(accounts, "acme", ADA)
    eve = await own_key(accounts, "evil", EVE)
    await add(accounts, eve, ADA, ROLE_OWNER)
    return eve


async def sees_only_evil(accounts: Client, stolen: Identity) -> None:
    with calling(stolen):
        assert [w.name for w in (await accounts.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces] == ["evil"]
        assert (await accounts.GetWorkspace(pb.GetWorkspaceRequest(name="evil"))).name == "evil"
        for name in ("acme", "acm"):
            for call in (
                accounts.GetWorkspace(pb.GetWorkspaceRequest(name=name)),
                accounts.UpdateWorkspace(pb.UpdateWorkspaceRequest(name=name, display_name="mine")),
            ):
                with pytest.raises(NotFound) as refused:
                    await call
                assert "did you mean" not in refused.value.detail and not refused.value.errors
        with pytest.raises(Forbidden, match=r"made for ada@acme\.test by somebody else.*cannot make workspaces"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="new"))
        with pytest.raises(Forbidden, match=r"made for ada@acme\.test by somebody else"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="acme"))


async def test_a_key_for_a_namesake_opens_nothing_of_theirs(accounts: Client, eve: Identity) -> None:
    made = await key_for(accounts, eve, ADA)
    assert made.api_key.confined and (made.api_key.member, made.api_key.role) == (ADA, ROLE_OWNER)
    await sees_only_evil(accounts, await identify(accounts, made.secret))


async def test_a_confined_key_makes_no_free_ones(accounts: Client, eve: Identity) -> None:
    first = await identify(accounts, (await key_for(accounts, eve, ADA)).secret)
    for member in ("", ADA, EVE):
        made = await key_for(accounts, first, member)
        assert made.api_key.confined
    await sees_only_evil(accounts, await identify(accounts, (await key_for(accounts, first, "")).secret))
    await sees_only_evil(accounts, await identify(accounts, (await key_for(accounts, first, "ADA@acme.test")).secret))


async def test_a_revoked_or_unknown_key_is_no_freer(accounts: Client, eve: Identity) -> None:
    """A token outlives its key by minutes."""
    made = await key_for(accounts, eve, ADA)
    stolen = await identify(accounts, made.secret)
    with calling(eve):
        await accounts.DeleteApiKey(pb.DeleteApiKeyRequest(id=made.api_key.id))
    await sees_only_evil(accounts, stolen)
    await sees_only_evil(accounts, Identity("gateway", "evil", ADA, ROLE_OWNER, "key-unknown"))
    # A free key of another workspace frees nobody here.
    free = await own_key(accounts, "third", EVE)
    await sees_only_evil(accounts, Identity("gateway", "evil", ADA, ROLE_OWNER, free.key_id))


async def test_only_members_and_no_role_above_either(accounts: Client, eve: Identity) -> None:
    await add(accounts, eve, BOB, ROLE_ADMIN)
    bob = await identify(accounts, (await key_for(accounts, eve, BOB)).secret)
    assert bob.role == ROLE_ADMIN
    for member in ("stranger@x.test", "owner@localhost"):
        with pytest.raises(NotFound, match="no member"):
            await key_for(accounts, bob, member)
    with pytest.raises(NotFound, match=r"did you mean eve@evil\.test"):
        await key_for(accounts, bob, "eve@evil.tst")
    # ada is an owner, bob an admin: neither by asking nor by not asking does he get more.
    assert (await key_for(accounts, bob, ADA)).api_key.role == ROLE_ADMIN
    with pytest.raises(Forbidden, match="owner"):
        await key_for(accounts, bob, ADA, role=ROLE_OWNER)
    await add(accounts, eve, BOB, ROLE_VIEWER)
    assert (await key_for(accounts, eve, BOB)).api_key.role == ROLE_VIEWER
    with pytest.raises(Forbidden, match=r"bob@evil\.test is a viewer.*at most that"):
        await key_for(accounts, eve, BOB, role=ROLE_EDITOR)
    with pytest.raises(Invalid, match="only the first workspace has operators"):
        await key_for(accounts, eve, BOB, role=ROLE_OPERATOR)
    with calling(Identity("gateway", "evil", BOB, ROLE_EDITOR, bob.key_id)), pytest.raises(Forbidden):
        await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k", member=EVE))


async def test_who_was_added_gets_in(accounts: Client, eve: Identity) -> None:
    await add(accounts, eve, BOB, ROLE_EDITOR)
    made = await key_for(accounts, eve, "Bob@Evil.test", role=ROLE_VIEWER)
    assert (await identify(accounts, made.secret)).role == ROLE_VIEWER
    with calling(eve):
        assert {k.member: k.confined for k in (await accounts.ListApiKeys(pb.ListApiKeysRequest())).api_keys} == {BOB: True, EVE: False}
        await accounts.DeleteMember(pb.DeleteMemberRequest(email=BOB))
    with pytest.raises(Exception, match="unknown or was revoked"):
        await identify(accounts, made.secret)


async def test_ones_own_key_stays_free(accounts: Client, eve: Identity) -> None:
    for member in ("", EVE, "EVE@evil.test"):
        made = await key_for(accounts, eve, member)
        assert not made.api_key.confined
    with calling(await identify(accounts, made.secret)):
        await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="more"))
        assert [w.name for w in (await accounts.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces] == ["evil", "more"]


async def test_an_operators_confined_key_runs_the_platform_and_is_nobody_elsewhere(accounts: Client, eve: Identity) -> None:
    with as_member("default", "owner@localhost", ROLE_OPERATOR):
        await accounts.SetMember(pb.SetMemberRequest(email=ADA, role=ROLE_OWNER))
        made = await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k", member=ADA))
    with calling(await identify(accounts, made.secret)):
        # By the role, not by the e-mail.
        assert not (await accounts.GetWorkspace(pb.GetWorkspaceRequest(name="acme"))).role
        assert [w.name for w in (await accounts.ListWorkspaces(pb.ListWorkspacesRequest())).workspaces] == ["default"]
        with pytest.raises(Forbidden, match="cannot make workspaces"):
            await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="new"))


async def test_the_first_key_is_never_confined(accounts: Client, database: Database) -> None:
    with as_member("default", "owner@localhost", ROLE_OPERATOR):
        await accounts.SetMember(pb.SetMemberRequest(email=ADA, role=ROLE_VIEWER))
        made = await accounts.CreateApiKey(pb.CreateApiKeyRequest(name="k", member=ADA))
    await bootstrap(database, Settings(bootstrap_key=made.secret))
    with calling(await identify(accounts, made.secret)):
        await accounts.CreateWorkspace(pb.CreateWorkspaceRequest(name="new"))
