"""Months begin and end where the calendar says, and no second is in two of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.accounts.domain.metering import gib_months
from services.accounts.domain.periods import by_month, next_month, period_of, start_of

times = st.integers(0, 4_000_000_000)


def test_months() -> None:
    assert period_of(1_790_812_799.999) == "2026-09" and period_of(1_790_812_800) == "2026-10"
    assert start_of("2026-10") == 1_790_812_800
    assert (next_month("2026-11"), next_month("2026-12")) == ("2026-12-01", "2027-01-01")


@settings(deadline=None)
@given(times, times)
def test_parts_make_the_whole(start: int, end: int) -> None:
    parts = list(by_month(start, end))
    assert sum(until - since for _, since, until in parts) == max(end - start, 0)
    assert all(period_of(since) == period and 0 < gib_months(1 << 30, since, until) <= 1 for period, since, until in parts)
