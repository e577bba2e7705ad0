"""Quantities mean what Kubernetes means by them, and a pod asks for what kube-scheduler counts."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compute.domain.demand import MOST, demand, thousandths

amounts = st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), st.integers(0, 10**6))
initials = st.lists(st.tuples(amounts, st.booleans()), max_size=4)
SCALES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12}


@pytest.mark.parametrize(
    ("quantity", "meant"),
    [
        ("100m", 100),
        ("3Gi", 3 * 2**30 * 1000),
        ("1e3", 1_000_000),
        ("1E3", 1_000_000),
        ("1E", 10**21),
        ("128974848", 128_974_848_000),
        ("1.5", 1500),
        (".5", 500),
        ("5.", 5000),
        ("+2", 2000),
        ("-2", 0),
        ("0", 0),
        ("100u", 1),
        ("1n", 1),
        ("966367641600m", 966_367_641_600),
        ("12e-1", 1200),
        ("9" * 40 + "Ei", MOST),
    ],
)
def test_quantities(quantity: str, meant: int) -> None:
    assert thousandths(quantity) == min(meant, MOST)


@pytest.mark.parametrize("wrong", ["", "m", "1 Gi", "1gi", "0x10", "1e999999999", "1_000", "NaN", "Infinity", "\u0661", "1" * 41, "1Gi\n"])
def test_what_is_no_quantity_is_refused_with_words(wrong: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        thousandths(wrong)


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from(list(SCALES)))
def test_a_quantity_is_its_number_times_its_unit_rounded_up(whole: int, part: int, suffix: str) -> None:
    exact = (whole + Fraction(part, 1000)) * Fraction(10) ** SCALES[suffix] * 1000
    assert 0 <= min(MOST, thousandths(f"{whole}.{part:03}{suffix}")) - min(MOST, exact) < 1
    assert thousandths(f"{whole}.{part:03}{suffix}") == thousandths(f"{whole}.{part:03}e{SCALES[suffix]}")


@given(st.text(max_size=60))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    try:
        assert 0 <= thousandths(text) <= MOST
    except ValueError:
        pass


def test_a_sidecar_counts_beside_what_comes_after_it() -> None:
    initial = [({"cpu": 900}, False), ({"cpu": 100}, True), ({"cpu": 700}, False)]
    assert demand([{"cpu": 300}, {"cpu": 200}], initial) == {"cpu": 900}
    assert demand([{"cpu": 300}, {"cpu": 600}], initial) == {"cpu": 1000}
    assert demand([{"cpu": 300}], [({"cpu": 100}, True), ({"cpu": 950}, False)]) == {"cpu": 1050}


def test_what_the_pod_says_of_itself_counts_and_its_overhead_always() -> None:
    total = demand([{"cpu": 300, "memory": 5}], whole={"cpu": 1000}, overhead={"cpu": 50, "memory": 2})
    assert total == {"cpu": 1050, "memory": 7}


@given(st.lists(amounts, max_size=4), initials, amounts)
def test_no_part_of_a_pod_asks_for_more_than_the_pod(
    containers: list[dict[str, int]], initial: list[tuple[dict[str, int], bool]], overhead: dict[str, int]
) -> None:
    total = demand(containers, initial, overhead=overhead)
    for name in ("cpu", "memory", "nvidia.com/gpu"):
        has, staying = total.get(name, 0) - overhead.get(name, 0), 0
        for wanted, stays in initial:
            assert has >= staying + wanted.get(name, 0)
            staying += wanted.get(name, 0) if stays else 0
        assert has >= staying + sum(c.get(name, 0) for c in containers)
