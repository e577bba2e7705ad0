"""Rollouts keep serving, crash loops slow down, bad models are taken back, and shares add up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Conflict, Invalid
from services.deployment.domain.rollout import (
    FAILED_AFTER,
    Move,
    Newcomer,
    Plan,
    Rollout,
    Seen,
    Served,
    Wanted,
    beside_count,
    is_old_window,
    next_move,
    pause_after,
    plan,
    require_split,
    shares,
    state_of,
    was_proven,
)
from services.deployment.domain.states import EndpointState, ReplicaState, RevisionState

STARTING, READY, DRAINING, ENDED = ReplicaState
GOOD, OLD = Served(100, 0, 1.0), Served(100, 1, 1.0)


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


def test_a_revision_beside_the_serving_one_has_replicas_of_its_own() -> None:
    both = seen(READY, READY) + seen(READY, STARTING, revision=2, first=5)
    assert plan(Wanted(2, 1), both, 10, Wanted(3, 2)) == Plan(0, (), 1)
    assert plan(Wanted(2, 1), both, 10, Wanted(1, 2)) == Plan(0, ("rep-6",))
    assert plan(Wanted(2, 1), both, 10, Wanted(3, 2, failures=1, next_try_time=11)) == Plan()
    assert plan(Wanted(2, 1), seen(READY, READY, revision=3), 10, Wanted(1, 2)) == Plan(2, (), 1)


def test_states() -> None:
    assert state_of(Wanted(1, 2), seen(READY, revision=2), takes_over=True) == EndpointState.STARTING
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


def newcomer(
    state: RevisionState,
    percent: int = 0,
    *,
    ready: int = 3,
    since: float = 0,
    starts_since: float | None = None,
    served: Served = Served(),
    failures: int = 0,
) -> Newcomer:
    return Newcomer(state, percent, since, ready, starts_since, served, failures, "exit code 3")


@pytest.mark.parametrize(
    "new, now, expected",
    [
        # Waiting for room is no start.
        (newcomer(RevisionState.STARTING, ready=0), 900, None),
        (newcomer(RevisionState.STARTING, ready=0, starts_since=900), 924, None),
        (newcomer(RevisionState.STARTING, ready=1, starts_since=0), 24, Move(RevisionState.CANARY, 10)),
        (newcomer(RevisionState.STARTING, ready=1), 0, Move(RevisionState.CANARY, 10)),
        # The next step's replicas are ready first, and enough was seen or nobody asked.
        (newcomer(RevisionState.CANARY, 10), 9, None),
        (newcomer(RevisionState.CANARY, 10), 10, Move(RevisionState.CANARY, 50)),
        (newcomer(RevisionState.CANARY, 10, ready=1), 10, None),
        (newcomer(RevisionState.CANARY, 10, served=GOOD), 10, Move(RevisionState.CANARY, 50)),
        (newcomer(RevisionState.CANARY, 10, served=Served(3, 0, 0.1)), 10, None),
        (newcomer(RevisionState.CANARY, 10, served=Served(3, 0, 0.1)), 30, Move(RevisionState.CANARY, 50)),
        (newcomer(RevisionState.CANARY, 50, served=GOOD), 10, Move(RevisionState.PROVING, 100)),
        (newcomer(RevisionState.PROVING, 100, served=GOOD), 59, None),
        (newcomer(RevisionState.PROVING, 100, served=GOOD), 60, Move(RevisionState.ACTIVE, 100)),
        (newcomer(RevisionState.PROVING, 100, ready=0), 600, None),
        # What its owner split stays so.
        (newcomer(RevisionState.SPLIT, 30, served=Served(100, 100, 1), failures=9), 900, None),
        (newcomer(RevisionState.SHADOWING, served=Served(100, 100, 1)), 900, None),
    ],
)
def test_a_good_model_takes_over_step_by_step(new: Newcomer, now: float, expected: Move | None) -> None:
    assert next_move(Rollout(), new, OLD, 3, now) == expected


@pytest.mark.parametrize(
    "new, why",
    [
        (newcomer(RevisionState.STARTING, ready=0, failures=2), "its replicas failed 2 times: exit code 3"),
        (
            newcomer(RevisionState.STARTING, ready=0, starts_since=-24),
            "its first replica was not ready within 25 s; rollout.start_seconds gives it longer",
        ),
        (newcomer(RevisionState.CANARY, 10, served=Served(3, 3, 0.1)), "3 of 3 requests failed; 5.00% may, and 1.00% did before"),
        (newcomer(RevisionState.CANARY, 10, served=Served(10, 1, 0.1)), "1 of 10 requests failed; 5.00% may, and 1.00% did before"),
        (newcomer(RevisionState.PROVING, 100, served=Served(100, 6, 1)), "6 of 100 requests failed; 5.00% may, and 1.00% did before"),
        (newcomer(RevisionState.CANARY, 10, served=Served(10, 0, 0.4)), "a request takes 40 ms and took 10 ms before"),
    ],
)
def test_a_bad_model_is_taken_back_at_once(new: Newcomer, why: str) -> None:
    assert next_move(Rollout(), new, OLD, 3, now=1) == Move(RevisionState.ROLLED_BACK, 0, why)


def test_one_failure_of_few_requests_is_judged_once_there_were_enough_or_all_patience_is_over() -> None:
    new = newcomer(RevisionState.CANARY, 10, served=Served(2, 1, 0.02))
    assert next_move(Rollout(), new, OLD, 3, now=29) is None
    assert next_move(Rollout(), new, OLD, 3, now=30) == Move(
        RevisionState.ROLLED_BACK, 0, "1 of 2 requests failed; 5.00% may, and 1.00% did before"
    )


def test_what_fails_as_often_as_before_or_is_slower_by_noise_alone_goes_on() -> None:
    assert next_move(Rollout(), newcomer(RevisionState.CANARY, 10, served=Served(100, 20, 1)), Served(100, 20, 1), 3, 1) is None
    assert next_move(Rollout(), newcomer(RevisionState.CANARY, 10, served=Served(100, 0, 0.5)), Served(100, 0, 0.1), 3, 1) is None


def test_where_nothing_runs_there_is_nothing_to_compare_with() -> None:
    assert next_move(Rollout(), newcomer(RevisionState.STARTING, ready=0), OLD, 0, 1) == Move(RevisionState.ACTIVE, 100)
    assert next_move(Rollout(shadow=True), newcomer(RevisionState.SHADOWING, ready=0), OLD, 0, 1) is None


def test_a_shadow_waits_for_its_promotion() -> None:
    rollout = Rollout(shadow=True)
    assert next_move(rollout, newcomer(RevisionState.STARTING, ready=2), OLD, 3, 0) is None
    assert next_move(rollout, newcomer(RevisionState.STARTING, ready=3), OLD, 3, 0) == Move(RevisionState.SHADOWING, 0)


def test_a_newcomer_has_the_replicas_of_its_next_step() -> None:
    counts = [
        beside_count(Rollout(), newcomer(state, percent), 10)
        for state, percent in (
            (RevisionState.STARTING, 0),
            (RevisionState.CANARY, 10),
            (RevisionState.CANARY, 50),
            (RevisionState.PROVING, 100),
            (RevisionState.SPLIT, 25),
        )
    ]
    assert counts == [1, 5, 10, 10, 3]


def test_a_long_good_time_does_not_hide_a_bad_one() -> None:
    assert is_old_window(0, Served(10), 15)
    assert not is_old_window(0, Served(9), 900)
    assert not is_old_window(0, Served(10_000), 14)


@pytest.mark.parametrize("percents", [(10, 50), (50, 10, 100), (10, 10, 100)])
def test_steps_grow_to_all(percents: tuple[int, ...]) -> None:
    with pytest.raises(Invalid, match="must grow and end with 100"):
        replace(Rollout(), percents=percents).require_steps()


@given(st.dictionaries(st.integers(1, 9), st.integers(0, 100), max_size=3), st.lists(st.integers(1, 9), max_size=4))
def test_shares_are_100_together_and_of_those_that_are_ready(wanted: dict[int, int], ready: list[int]) -> None:
    found = shares(wanted, ready)
    assert set(found) == set(wanted) & set(ready)
    assert sum(found.values()) == (100 if found else 0)
    assert all(percent >= 0 for percent in found.values())
    if sum(wanted.values()) == 100 and set(wanted) <= set(ready):
        assert found == wanted


@given(st.integers(0, 100))
def test_a_manual_split_is_had_exactly(percent: int) -> None:
    assert require_split([(1, 100 - percent), (2, percent)], 1, 2, [1, 2]) == percent


@pytest.mark.parametrize(
    "traffic, new, ready, error, words",
    [
        ([(1, 50), (2, 40)], 2, [1, 2], Invalid, "100 together, got 90"),
        ([(1, 50), (1, 50)], 2, [1, 2], Invalid, "a second time"),
        ([(1, 50), (3, 50)], 2, [1, 2], Conflict, "revision 3 has no replicas"),
        ([(2, 100)], None, [1], Conflict, "has revision 1 alone"),
        ([(1, 50), (2, 50)], 2, [1], Conflict, "revision 2 has no ready replica yet"),
    ],
)
def test_or_is_refused(traffic: list[tuple[int, int]], new: int | None, ready: list[int], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        require_split(traffic, 1, new, ready)
