"""What the reconciler does next about a job, from its row alone."""

from enum import StrEnum
from typing import Protocol

from services.training.domain.states import State


class Standing(Protocol):
    """What the decision looks at."""

    state: str
    allocation_id: str
    not_before: float
    lease_holder: str
    lease_expires: float


class Step(StrEnum):
    NOTHING = "nothing"
    # Ask compute for an allocation; asked again it answers the same one, with where it stands.
    ASK = "ask"
    # Tell the workers that it waits for one of them.
    HINT = "hint"
    # Its worker is gone: count that and go on.
    BURY = "bury"
    # Cancel was asked for and nobody has a process of it.
    CANCEL = "cancel"
    # Over; give the allocation back.
    RELEASE = "release"


def next_step(job: Standing, now: float) -> Step:
    state = State(job.state)
    held = bool(job.lease_holder)
    alive = held and job.lease_expires > now
    if state.ended:
        return Step.RELEASE if job.allocation_id else Step.NOTHING
    if alive:
        return Step.NOTHING
    if state is State.CANCELLING:
        return Step.CANCEL
    if held:
        return Step.BURY
    if job.not_before > now:
        return Step.NOTHING
    return Step.ASK if state is State.QUEUED else Step.HINT
