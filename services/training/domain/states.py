"""The states of a training job and the moves between them."""

from enum import StrEnum

from libs.errors import Conflict


class State(StrEnum):
    """As JobState in the contract, in lower case."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return not MOVES[self]

    @property
    def active(self) -> bool:
        """Has, or may have, a process."""
        return self in (State.STARTING, State.RUNNING, State.CANCELLING)


MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.FAILED, State.CANCELLED}),
    # Back to starting or queued: the attempt ended and there will be another, with or without the same allocation.
    State.STARTING: frozenset({State.STARTING, State.QUEUED, State.RUNNING, State.CANCELLING, State.SUCCEEDED, State.FAILED}),
    State.RUNNING: frozenset({State.STARTING, State.QUEUED, State.CANCELLING, State.SUCCEEDED, State.FAILED}),
    # Whatever its process did in the meantime: who asks for the end gets the end.
    State.CANCELLING: frozenset({State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def require_move(before: State, after: State) -> None:
    """Raises Conflict where there is no such move."""
    if after not in MOVES[before]:
        raise Conflict(f"a training job that is {before} cannot become {after}")
