"""What is known of the call that is being answered: who calls, which method, until when."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import context

from lepton.common.v1 import options_pb2
from libs.rpc.identity import NOBODY, Identity
from libs.telemetry import extract


@dataclass(frozen=True, slots=True)
class Call:
    """`method` is a full name ("lepton.data.v1.DataService/GetDataset"), `deadline` a time of time.monotonic(), or None for none."""

    identity: Identity = NOBODY
    method: str = ""
    idempotency_key: str = ""
    deadline: float | None = None

    def remaining(self) -> float | None:
        """Seconds left, perhaps negative; None without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()


_NO_CALL = Call()
_current: ContextVar[Call] = ContextVar("lepton_call", default=_NO_CALL)


def current_call() -> Call:
    """The call being answered; outside of any, one by nobody without a deadline."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Makes `call` the current one for the rest of this task. For servers."""
    _current.set(call)


@contextmanager
def acting(call: Call) -> Iterator[None]:
    """Makes `call` the current one inside the block."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def acting_for(workspace: str, member: str = "", role: int = options_pb2.ROLE_OPERATOR, traceparent: str = "") -> Iterator[None]:
    """Background work (events, tasks, reconcilers) on behalf of a workspace: clients used inside the block sign for it.

    `traceparent`: the trace that is gone on with.
    """
    token = context.attach(extract({"traceparent": traceparent})) if traceparent else None
    try:
        with acting(Call(Identity("", workspace, member, role))):
            yield
    finally:
        if token:
            context.detach(token)
