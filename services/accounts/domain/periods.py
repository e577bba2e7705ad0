"""Calendar months in UTC, written "2026-11"."""

from collections.abc import Iterator
from datetime import UTC, datetime


def period_of(moment: float) -> str:
    """The month that holds `moment`, seconds since 1970."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m")


def start_of(period: str) -> float:
    """The first moment of a month."""
    return datetime.strptime(f"{period}+0000", "%Y-%m%z").timestamp()


def next_month(period: str) -> str:
    """The first day of the month after, "2026-12-01"."""
    year, month = map(int, period.split("-"))
    return f"{year + month // 12:04}-{month % 12 + 1:02}-01"


def by_month(start: float, end: float) -> Iterator[tuple[str, float, float]]:
    """The parts of the time from `start` to `end` that lie in one month each: month, start, end."""
    while start < end:
        period = period_of(start)
        until = min(end, start_of(next_month(period)[:7]))
        yield period, start, until
        start = until
