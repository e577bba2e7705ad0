"""What a plan may say: limits and prices by metric."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from libs.errors import Invalid, Violation, near
from services.accounts.domain.pricing import MICROS
from services.accounts.domain.quotas import COUNTERS, METRICS

CURRENCY = "USD"
# What has a price; a listing's rows and the plan itself have their own.
PRICED = (*COUNTERS, "storage_gib_months")
# What is free where a plan does not say its price: a replica's time is billed by its allocation already, tokens by their rows.
PRICED_WHERE_SAID = ("replica_seconds", "tokens_in", "tokens_out")
# Every number up to it is exact in any client's JSON.
HIGHEST_LIMIT = 2**53
DEAREST_UNIT = 1000 * MICROS
DEAREST_MONTH = 1_000_000 * MICROS


class Price(NamedTuple):
    """As it was asked for; not checked."""

    currency: str
    micros: int


class PlanChanges(NamedTuple):
    """What an operator changes of a plan; None, and a metric that is not named, leave as it is."""

    display_name: str | None
    monthly_price: Price | None
    quotas: list[tuple[str, int]]
    # None: no price was given with the metric.
    prices: list[tuple[str, Price | None]]


def check_plan(changes: PlanChanges, *, new: bool) -> None:
    """Raises Invalid with everything that is wrong."""
    found = [*_metrics("quotas", [metric for metric, _ in changes.quotas], METRICS, new=new)]
    found += _metrics("prices", [metric for metric, _ in changes.prices], PRICED, PRICED_WHERE_SAID, new=new)
    for index, (_, limit) in enumerate(changes.quotas):
        if not 0 <= limit <= HIGHEST_LIMIT:
            found.append(Violation(f"quotas[{index}].limit", f"must be 0 (none) to {HIGHEST_LIMIT}, got {limit}"))
    for index, (_, price) in enumerate(changes.prices):
        found += _price(f"prices[{index}].unit_price", price, DEAREST_UNIT)
    if changes.monthly_price is not None:
        found += _price("monthly_price", changes.monthly_price, DEAREST_MONTH)
    if changes.display_name == "":
        found.append(Violation("display_name", "must not be empty"))
    if found:
        raise Invalid.of(found)


def changed_limits(before: Mapping[str, int], changes: PlanChanges) -> dict[str, int]:
    """All limits after the changes."""
    after = {**before, **dict(changes.quotas)}
    return {metric: after.get(metric, 0) for metric in METRICS}


def changed_prices(before: Mapping[str, int], changes: PlanChanges) -> dict[str, int]:
    """All prices after the changes, in micros a unit."""
    after = {**before, **{metric: price.micros for metric, price in changes.prices if price}}
    return {metric: after.get(metric, 0) for metric in (*PRICED, *PRICED_WHERE_SAID) if metric in after or metric in PRICED}


def _metrics(field: str, given: list[str], needed: Iterable[str], optional: Iterable[str] = (), *, new: bool) -> Iterable[Violation]:
    needed = tuple(needed)
    known = (*needed, *optional)
    for index, metric in enumerate(given):
        if metric not in known:
            hints = tuple(near(metric, known)) or known
            yield Violation(f"{field}[{index}].metric", f"must be one of {', '.join(known)}; got '{metric[:60]}'", hints)
        elif metric in given[:index]:
            yield Violation(f"{field}[{index}].metric", f"names {metric} a second time")
    missing = tuple(metric for metric in needed if metric not in given)
    if new and missing:
        yield Violation(field, f"a new plan must name every metric; missing are {', '.join(missing)}", missing)


def _price(field: str, price: Price | None, dearest: int) -> Iterable[Violation]:
    if price is None:
        yield Violation(field, f'is required; {{"currency": "{CURRENCY}", "micros": 0}} is free')
    elif price.currency != CURRENCY:
        yield Violation(f"{field}.currency", f"must be {CURRENCY}, got '{price.currency}'", (CURRENCY,))
    elif not 0 <= price.micros <= dearest:
        yield Violation(f"{field}.micros", f"must be 0 (free) to {dearest} ({dearest // MICROS} {CURRENCY}), got {price.micros}")
