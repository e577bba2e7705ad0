"""Exact money: amounts are whole micros (millionths of a dollar), quantities whole millionths of a unit.

The rule: each fact's quantity, amount and platform fee are rounded once, when it is recorded, to the nearest, halves to even. Totals are
sums of what was recorded, so that they never differ from their lines.
"""

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from libs.errors import Poison

MICROS = 1_000_000
STORAGE_METRIC = "storage_gib_months"
# What a signed 64-bit column holds.
LARGEST = 2**63 - 1


class Line(NamedTuple):
    """Use of one metric by one resource at one price, summed up. `quantity` in millionths."""

    metric: str
    resource: str
    quantity: int
    unit_price: int
    amount: int


class EarningLine(NamedTuple):
    """What one buyer's calls of one listing brought in; gross = fee + net."""

    listing: str
    buyer: str
    quantity: int
    gross: int
    fee: int
    net: int


def summed(lines: Iterable[Line]) -> list[Line]:
    """One line a metric, resource and price, in that order."""
    sums: dict[tuple[str, str, int], tuple[int, int]] = {}
    for line in lines:
        key = (line.metric, line.resource, line.unit_price)
        quantity, amount = sums.get(key, (0, 0))
        sums[key] = (quantity + line.quantity, amount + line.amount)
    return [Line(metric, resource, quantity, price, amount) for (metric, resource, price), (quantity, amount) in sorted(sums.items())]


def quantity_of(value: float | int | Fraction) -> int:
    """Millionths of `value`. Raises Poison where nobody can have used that much, or less than nothing."""
    try:
        quantity = round(Fraction(value) * MICROS)
    except (ValueError, OverflowError):
        raise Poison(f"{value} is no quantity") from None
    return _bounded(quantity, "quantity")


def amount_of(quantity: int, unit_price: int) -> int:
    """What `quantity` (millionths) costs at `unit_price` (micros a unit)."""
    return _bounded(round(Fraction(quantity * unit_price, MICROS)), "amount")


def split(gross: int, fee_percent: Decimal) -> tuple[int, int]:
    """The platform's fee and what is left for the publisher."""
    fee = round(gross * Fraction(fee_percent) / 100)
    return fee, gross - fee


def whole_units(quantity: int) -> int:
    """Units of which at least a part was used; what counts against a quota."""
    return -(-quantity // MICROS)


def _bounded(value: int, what: str) -> int:
    if not 0 <= value <= LARGEST:
        raise Poison(f"an {what} of {value} millionths cannot be recorded" if what == "amount" else f"a quantity of {value} cannot be")
    return value
