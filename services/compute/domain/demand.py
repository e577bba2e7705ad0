"""What a pod asks of its machine, as kube-scheduler counts it, and the quantities in which it is written.

Amounts are thousandths of a core, of a byte, of a device, by the resource's name.
"""

import re
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

Amounts = Mapping[str, int]

# Larger ones than Kubernetes itself keeps count as this.
MOST = 2**63 - 1
_SUFFIXES = {"": 0, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_UNITS = {
    **{suffix: Decimal(10) ** power for suffix, power in _SUFFIXES.items()},
    **{f"{letter}i": Decimal(2 ** (10 * power)) for power, letter in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"(\+|-)?([0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)")


@lru_cache(maxsize=4096)
def thousandths(quantity: str) -> int:
    """ "100m" is 100, "1.5" 1500, "3Gi" 3 * 2**30 * 1000; rounded up, and 0 where it is negative. Raises ValueError."""
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"{quantity[:40]!r} is no quantity of Kubernetes: it must be as 100m, 1.5, 3Gi or 1e3")
    sign, number, exponent, unit = match.groups()
    if sign == "-":
        return 0
    scale = Decimal(10) ** int(exponent) if exponent else _UNITS[unit or ""]
    return min(MOST, int((Decimal(number) * scale * 1000).to_integral_value(ROUND_CEILING)))


def demand(
    containers: Iterable[Amounts],
    initial: Iterable[tuple[Amounts, bool]] = (),
    *,
    whole: Amounts | None = None,
    overhead: Amounts | None = None,
) -> dict[str, int]:
    """What a pod asks for: its containers together, or what one of those before them needs if that is more, and its overhead.

    `initial` run one after another, in their order, before the containers; one with True stays and runs beside all that come after.
    `whole` is what the pod asks for itself, in place of what its containers say.
    """
    staying: dict[str, int] = {}
    peak: dict[str, int] = {}
    for amounts, stays in initial:
        if stays:
            _add(staying, amounts)
        beginning = dict(staying)
        if not stays:
            _add(beginning, amounts)
        peak = {name: max(peak.get(name, 0), beginning.get(name, 0)) for name in {*peak, *beginning}}
    running = dict(staying)
    for amounts in containers:
        _add(running, amounts)
    total = {name: max(peak.get(name, 0), running.get(name, 0)) for name in {*peak, *running}} | dict(whole or {})
    _add(total, overhead or {})
    return total


def _add(total: dict[str, int], amounts: Amounts) -> None:
    for name, amount in amounts.items():
        total[name] = total.get(name, 0) + amount
