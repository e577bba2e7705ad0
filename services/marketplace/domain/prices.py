"""What a row may cost."""

from libs.errors import Invalid, Violation

CURRENCY = "USD"
MICROS = 1_000_000
# 1000 USD.
DEAREST = 1000 * MICROS


def check_price(currency: str, micros: int) -> int:
    """Micros of USD a row. Raises Invalid."""
    if currency != CURRENCY:
        raise Invalid.of([Violation("price.per_row.currency", f"must be {CURRENCY}, got '{currency}'", (CURRENCY,))])
    if not 0 <= micros <= DEAREST:
        raise Invalid.of([Violation("price.per_row.micros", f"must be 0 (free) to {DEAREST} (1000 {CURRENCY}) a row, got {micros}")])
    return micros


def words(micros: int) -> str:
    """ "0.002 USD a row", or "free"."""
    if not micros:
        return "free"
    return f"{micros // MICROS}.{micros % MICROS:06}".rstrip("0").rstrip(".") + f" {CURRENCY} a row"
