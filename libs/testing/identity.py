"""Calls by members that a test makes up."""

from collections.abc import Iterator
from contextlib import contextmanager

from lepton.common.v1 import options_pb2
from libs.rpc import Call, Identity, acting


@contextmanager
def as_member(
    workspace: str = "acme", member: str = "ada@example.com", role: int = options_pb2.ROLE_OWNER, *, key: str = "", method: str = "test"
) -> Iterator[None]:
    """Inside the block the current call is one by `member`, perhaps with an idempotency key."""
    with acting(Call(Identity("gateway", workspace, member, role), method, key)):
        yield
