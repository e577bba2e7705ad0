"""Scaling follows the requests within its bounds, does not flap, and puts nobody's replica to sleep."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.deployment.domain.scaling import STABLE_SECONDS, Decision, Fleet, Load, Scaling, Window, decide

bounds = st.tuples(st.integers(0, 20), st.integers(1, 20)).map(lambda pair: Scaling(min(pair[0], pair[1]), pair[1], 4.0, 60.0))
loads = st.builds(Load, st.floats(0, 500), st.integers(0, 200), st.floats(0, 1000))
fleets = st.builds(Fleet, st.integers(0, 30), st.none() | st.floats(0, 1000), st.booleans())
peaks = st.none() | st.integers(0, 200)


def run(scaling: Scaling, wanted: int, moments: "itertools.chain[Load] | list[Load]") -> list[int]:
    """The numbers of replicas, a second apart, where each is ready at once."""
    window, numbers = Window(), []
    for now, load in enumerate(moments, 1000):
        window.add(now, load.needs(scaling))
        decision = decide(scaling, Fleet(wanted, 1000.0 if wanted else None), load, window.peak, now)
        wanted = decision.replicas if decision else wanted
        numbers.append(wanted)
    return numbers


@given(bounds, fleets, loads, peaks)
def test_never_beyond_the_bounds(scaling: Scaling, fleet: Fleet, load: Load, peak: int | None) -> None:
    decision = decide(scaling, fleet, load, peak, 2000.0)
    after = decision.replicas if decision else fleet.wanted
    assert scaling.least <= after <= scaling.most
    assert decision is None or (decision.replicas != fleet.wanted and decision.why)


@given(bounds, st.floats(0, 300), st.integers(0, 20))
def test_a_constant_load_is_answered_once(scaling: Scaling, in_flight: float, wanted: int) -> None:
    numbers = run(scaling, wanted, [Load(in_flight, 0, 1e9)] * 100)
    turns = [pair for pair in itertools.pairwise(numbers) if pair[0] != pair[1]]
    assert len(turns) <= 1
    assert numbers[-1] >= min(Load(in_flight).needs(scaling), scaling.most)


@given(bounds, st.lists(st.floats(0, 40), min_size=1, max_size=20))
def test_a_load_that_comes_and_goes_does_not_make_it_flap(scaling: Scaling, turns: list[float]) -> None:
    numbers = run(scaling, scaling.least, [Load(turns[second % len(turns)], 0, 1e9) for second in range(120)])
    # All of it comes back within a window: after the first round there is nothing to change, but for the first sure look back.
    assert len(set(numbers[len(turns) + int(STABLE_SECONDS) :])) == 1


@given(fleets, loads, peaks, st.integers(1, 100))
def test_never_to_none_while_requests_wait(fleet: Fleet, load: Load, peak: int | None, waiting: int) -> None:
    load = Load(load.in_flight, waiting, load.last_request_time)
    decision = decide(Scaling(0, 20, 4.0, 1.0), fleet, load, peak, 1e6)
    assert decision.replicas if decision else fleet.wanted


@given(loads, peaks, st.integers(1, 20))
def test_never_to_none_while_the_first_replica_starts(load: Load, peak: int | None, wanted: int) -> None:
    decision = decide(Scaling(0, 20, 4.0, 1.0), Fleet(wanted), load, peak, 1e6)
    assert decision is None or decision.replicas


@pytest.mark.parametrize(
    "first_ready, last_request, now, expected",
    [
        (1000.0, 0.0, 1299.0, None),
        (1000.0, 0.0, 1300.0, Decision(0, "nobody asked for 300 s")),
        (1000.0, 1200.0, 1499.0, None),
        (1000.0, 1200.0, 1500.0, Decision(0, "nobody asked for 300 s")),
        (None, 0.0, 9000.0, None),
    ],
)
def test_idleness_counts_from_the_later_of_readiness_and_the_last_request(
    first_ready: float | None, last_request: float, now: float, expected: Decision | None
) -> None:
    assert decide(Scaling(0, 3), Fleet(1, first_ready), Load(0, 0, last_request), 0, now) == expected


def test_a_new_model_on_its_way_keeps_it_awake() -> None:
    assert decide(Scaling(0, 3), Fleet(1, 0.0, changes_model=True), Load(), 0, 1e6) is None


def test_up_at_once_and_down_after_a_window() -> None:
    assert run(Scaling(1, 4), 1, [Load(20, 4, 1e9)]) == [3]
    after = run(Scaling(1, 4), 1, [Load(20, 4, 1e9), *[Load(2, 0, 1e9)] * 40])
    assert after[:30] == [3] * 30 and after[-1] == 1
    assert decide(Scaling(1, 4), Fleet(1), Load(20, 4), None, 0) == Decision(3, "20.0 requests in hand and 4 held, 8 a replica")


def test_who_has_not_looked_for_long_enough_takes_nothing_away() -> None:
    window = Window()
    for now in range(20):
        window.add(now, 0)
    assert window.peak is None
    window.add(60, 0)  # Away for 40 s.
    for now in range(61, 90):
        window.add(now, 1)
        assert window.peak is None
    window.add(90, 0)
    assert window.peak == 1
