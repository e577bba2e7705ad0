"""A refusal says what is allowed, what is left, and what to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Conflict, QuotaExceeded
from services.accounts.domain.quotas import GAUGES, METRICS, Limits, Quota, fits, grant

PLANS = [Limits("trial", {"storage_bytes": 1 << 30, "endpoints": 1}), Limits("pro", {"storage_bytes": 1 << 40, "endpoints": 100})]


def refusal(quota: Quota, amount: int, plan: str = "trial") -> str:
    with pytest.raises(QuotaExceeded) as refused:
        grant(quota, amount, plan=plan, plans=PLANS, renews="2026-12-01")
    return refused.value.detail


def test_words() -> None:
    assert refusal(Quota("endpoints", 1, 1), 1) == "the trial plan allows 1 endpoint and 1 is in use; delete one, or change to pro (100)"
    assert refusal(Quota("storage_bytes", 1 << 30, 900 << 20), 3 << 30) == (
        "the trial plan allows 1 GiB of storage and 900 MiB are in use, and 3 GiB more were asked for; "
        "delete a dataset or a model, or change to pro (1 TiB)"
    )
    assert refusal(Quota("endpoints", 100, 100), 1, "pro").endswith("delete one, or ask the operator for a larger plan")


def test_what_was_used_does_not_bind_a_change_of_plan() -> None:
    fits([Quota("predictions", 10**9, 10**8), Quota("endpoints", 100, 1)], PLANS[0])
    with pytest.raises(Conflict, match="2 GiB storage where it allows 1 GiB; delete a dataset or a model first"):
        fits([Quota("storage_bytes", 1 << 40, 2 << 30)], PLANS[0])


@given(st.sampled_from(METRICS), st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_never_more_than_is_left(metric: str, limit: int, used: int, amount: int, at_least: int | None) -> None:
    quota = Quota(metric, limit, used)
    try:
        granted = grant(quota, amount, plan="trial", plans=PLANS, renews="2026-12-01", at_least=at_least)
    except QuotaExceeded as refused:
        assert amount > quota.remaining and (at_least is None or at_least > quota.remaining)
        assert refused.meta["remaining"] == quota.remaining
        assert ("in use" in refused.detail) == (metric in GAUGES)
        return
    assert granted == min(amount, quota.remaining)
