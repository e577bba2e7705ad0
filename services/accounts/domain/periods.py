"""Calendar months in UTC, written "2026-11"."""

from datetime import UTC, datetime


def period_of(moment: float) -> str:
    """The month that holds `moment`, seconds since 1970."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m")


def next_month(period: str) -> str:
    """The first day of the month after, "2026-12-01"."""
    year, month = map(int, period.split("-"))
    return f"{year + month // 12}-{month % 12 + 1:02}-01"
