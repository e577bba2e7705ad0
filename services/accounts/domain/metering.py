"""What use is called and how much it is."""

from fractions import Fraction

from libs.errors import Poison
from services.accounts.domain.periods import next_month, period_of, start_of

# Of common.v1.Accelerator; unset means cpu.
METRIC_BY_ACCELERATOR = {0: "cpu_seconds", 1: "cpu_seconds", 2: "gpu_seconds", 3: "tpu_seconds"}


def metric_of(accelerator: int) -> str:
    """The metric in which time on a kind of device is billed."""
    try:
        return METRIC_BY_ACCELERATOR[accelerator]
    except KeyError:
        raise Poison(f"no price is known for accelerator {accelerator}") from None


def device_seconds(seconds: float, *, accelerator: int, count: int, cpu_millis: int) -> Fraction:
    """Seconds times cores (thousandths count) for cpu, times devices for anything else. Raises Poison for no time at all."""
    try:
        time = Fraction(seconds)
    except (ValueError, OverflowError):
        raise Poison(f"{seconds} is no time") from None
    if METRIC_BY_ACCELERATOR.get(accelerator) == "cpu_seconds" and cpu_millis:
        return time * Fraction(cpu_millis, 1000)
    return time * (count or 1)


def gib_months(size_bytes: int, start: float, end: float) -> Fraction:
    """Bytes kept from `start` to `end`, both in one month, as a part of that month."""
    period = period_of(start)
    month = Fraction(start_of(next_month(period)[:7])) - Fraction(start_of(period))
    return Fraction(size_bytes, 1 << 30) * (Fraction(end) - Fraction(start)) / month


def resource_of(holder: str) -> str:
    """The job or endpoint behind an allocation's holder: "training-jobs/j1/attempts/2" is "training-jobs/j1"."""
    return "/".join(holder.split("/")[:2])
