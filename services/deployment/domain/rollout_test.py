"""Rollouts keep serving, crash loops slow down."""

import pytest

from services.deployment.domain.rollout import FAILED_AFTER, Plan, Seen, Wanted, pause_after, plan, state_of, was_proven
from services.deployment.domain.states import EndpointState, ReplicaState

STARTING, READY, DRAINING, ENDED = ReplicaState


def seen(*states: ReplicaState, revision: int = 1, first: int = 1) -> list[Seen]:
    return [Seen(f"rep-{first + n}", revision, state) for n, state in enumerate(states)]


@pytest.mark.parametrize(
    "wanted, replicas, expected",
    [
        (Wanted(2, 1), [], Plan(2)),
        (Wanted(2, 1), seen(READY, STARTING), Plan()),
        (Wanted(2, 1), seen(READY, DRAINING, ENDED), Plan(1)),
        # Scaled down: what does not serve yet goes first, then the newest.
        (Wanted(1, 1), seen(READY, READY, STARTING), Plan(0, ("rep-3", "rep-2"))),
        (Wanted(0, 1), seen(READY, STARTING), Plan(0, ("rep-2", "rep-1"))),
        # Another revision: the old one serves until the new one does.
        (Wanted(1, 2), seen(READY), Plan(1)),
        (Wanted(1, 2), seen(READY) + seen(STARTING, revision=2, first=5), Plan()),
        (Wanted(1, 2), seen(READY) + seen(READY, revision=2, first=5), Plan(0, ("rep-1",))),
        (Wanted(2, 2), seen(READY, READY) + seen(READY, STARTING, revision=2, first=5), Plan(0, ("rep-1",))),
        (Wanted(1, 2), seen(STARTING), Plan(1, ("rep-1",))),
        (Wanted(1, 1, failures=3, next_try_time=11), [], Plan()),
        (Wanted(1, 1, failures=3, next_try_time=10), [], Plan(1)),
    ],
)
def test_the_plan_leads_to_what_is_wanted(wanted: Wanted, replicas: list[Seen], expected: Plan) -> None:
    assert plan(wanted, replicas, now=10) == expected


def test_states() -> None:
    assert state_of(Wanted(0, 1), seen(READY)) == EndpointState.STOPPED
    assert state_of(Wanted(1, 1), seen(STARTING, READY)) == EndpointState.READY
    assert state_of(Wanted(1, 2), seen(READY)) == EndpointState.STARTING
    assert state_of(Wanted(1, 1, failures=FAILED_AFTER), seen(STARTING)) == EndpointState.FAILED
    assert state_of(Wanted(1, 1, failures=FAILED_AFTER), seen(READY)) == EndpointState.READY


def test_the_first_failure_is_tried_again_at_once_and_later_ones_ever_more_rarely() -> None:
    assert [pause_after(n) for n in range(1, 6)] == [0, 1, 2, 4, 8]
    assert pause_after(60) == 300


def test_a_long_life_is_no_failure() -> None:
    assert was_proven(100, 131)
    assert not was_proven(100, 120)
    assert not was_proven(None, 120)
