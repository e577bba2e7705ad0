"""What a plan still allows, and how it is said when it does not."""

from collections.abc import Mapping
from typing import NamedTuple

from libs.errors import Conflict, Invalid, QuotaExceeded, Violation, near

# What exists at once: how it is called (one, several), and how to get rid of some.
GAUGES = {
    "storage_bytes": ("byte of storage", "bytes of storage", "delete a dataset or a model"),
    "concurrent_training_jobs": ("training job at once", "training jobs at once", "wait for one to end or cancel one"),
    "endpoints": ("endpoint", "endpoints", "delete one"),
    "api_keys": ("API key", "API keys", "revoke one"),
    "members": ("member", "members", "remove one"),
}
# What is used in a calendar month.
COUNTERS = {
    "cpu_seconds": ("CPU second", "CPU seconds"),
    "gpu_seconds": ("GPU second", "GPU seconds"),
    "tpu_seconds": ("TPU second", "TPU seconds"),
    "predictions": ("prediction", "predictions"),
}
METRICS = (*GAUGES, *COUNTERS)


class Quota(NamedTuple):
    """How much of one metric a workspace has used."""

    metric: str
    limit: int
    used: int

    @property
    def remaining(self) -> int:
        return max(self.limit - self.used, 0)


class Limits(NamedTuple):
    """A plan as far as quotas go."""

    name: str
    quotas: Mapping[str, int]


def check_metric(metric: str) -> None:
    """Raises Invalid for a metric that no plan has."""
    if metric not in METRICS:
        hints = tuple(near(metric, METRICS)) or METRICS
        raise Invalid.of([Violation("metric", f"must be one of {', '.join(METRICS)}; got '{metric}'", hints)])


def grant(quota: Quota, amount: int, *, plan: str, plans: list[Limits], renews: str, at_least: int | None = None) -> int:
    """How much of `amount` is given: all of it, or with `at_least` what is left. `renews` is the day on which counters begin anew.

    Raises QuotaExceeded with what is left and which plans have more.
    """
    if amount <= quota.remaining:
        return amount
    if at_least is not None and at_least <= quota.remaining:
        return quota.remaining
    more = sorted((p.quotas.get(quota.metric, 0), p.name) for p in plans if p.quotas.get(quota.metric, 0) > quota.limit)
    raise QuotaExceeded(
        _refusal(quota, amount, plan, [f"{name} ({_count(quota.metric, limit)})" for limit, name in more], renews),
        meta={
            "metric": quota.metric,
            "limit": quota.limit,
            "used": quota.used,
            "remaining": quota.remaining,
            "plans": [{"name": name, "limit": limit} for limit, name in more],
        },
    )


def fits(quotas: list[Quota], plan: Limits) -> None:
    """Raises Conflict where more exists than `plan` allows; what was used in the month does not count."""
    over = [q for q in quotas if q.metric in GAUGES and q.used > plan.quotas.get(q.metric, 0)]
    if over:
        words = ", ".join(_excess(q, plan.quotas.get(q.metric, 0)) for q in over)
        raise Conflict(
            f"the workspace has more than the {plan.name} plan allows: {words}; {GAUGES[over[0].metric][2]} first",
            meta={"over": [{"metric": q.metric, "used": q.used, "limit": plan.quotas.get(q.metric, 0)} for q in over]},
        )


def _refusal(quota: Quota, amount: int, plan: str, more: list[str], renews: str) -> str:
    change = f"change to {' or '.join(more)}" if more else "ask the operator for a larger plan"
    needed = f", and {_count(quota.metric, amount)} more {'was' if amount == 1 else 'were'} asked for" if amount > 1 else ""
    if quota.metric in GAUGES:
        one, several, remedy = GAUGES[quota.metric]
        if quota.metric == "storage_bytes":
            has = f"{_count(quota.metric, quota.limit)} of storage and {_count(quota.metric, quota.used)} are in use"
        else:
            has = f"{quota.limit} {one if quota.limit == 1 else several} and {quota.used} {'is' if quota.used == 1 else 'are'} in use"
        return f"the {plan} plan allows {has}{needed}; {remedy}, or {change}"
    one, several = COUNTERS[quota.metric]
    if not quota.limit:
        return f"the {plan} plan allows no {several}; {change}"
    left = f"{quota.remaining} {'is' if quota.remaining == 1 else 'are'} left"
    has = f"{quota.limit} {one if quota.limit == 1 else several} a month and {left}"
    return f"the {plan} plan allows {has}{needed}; wait until {renews}, or {change}"


def _excess(quota: Quota, limit: int) -> str:
    several = GAUGES[quota.metric][1].removeprefix("bytes of ")
    return f"{_count(quota.metric, quota.used)} {several} where it allows {_count(quota.metric, limit)}"


def _count(metric: str, number: int) -> str:
    if metric != "storage_bytes":
        return str(number)
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number / (1 << power):.4g} {unit}"
    return f"{number} bytes"
