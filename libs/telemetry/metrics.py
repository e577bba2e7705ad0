"""Metrics: counters, histograms and gauges, declared once beside the code that moves them.

Names and labels are as Prometheus has them: base units, `_total` on counters, never an id or a tenant in a label. Until metrics are
started a call costs an attribute look-up, and OpenTelemetry's SDK is not even imported.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Of what waits in a queue.
LONG_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)

Instrument = TypeVar("Instrument")
# Every metric of the modules that are loaded.
_declared: dict[str, "_Metric[Any]"] = {}
_meter: "Meter | None" = None


@dataclass(frozen=True)
class Declared:
    """What a metric is: `kind` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str


class _Metric(Generic[Instrument]):
    kind = ""

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        if name in _declared:
            raise ValueError(f"metric {name} is declared twice")
        self.declared = Declared(name, self.kind, tuple(labels), description)
        self._instrument: Instrument | None = None
        _declared[name] = self
        if _meter:
            self.bind(_meter)

    def bind(self, meter: "Meter | None") -> None:
        """Goes to this meter from now on; None: nowhere."""
        self._instrument = self._make(meter) if meter else None

    def _make(self, meter: "Meter") -> Instrument:
        raise NotImplementedError


class Counter(_Metric[Any]):
    """Only grows."""

    kind = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        """Counts."""
        if self._instrument:
            self._instrument.add(amount, labels)

    def _make(self, meter: "Meter") -> Any:
        return meter.create_counter(self.declared.name, description=self.declared.description)


class Level(_Metric[Any]):
    """A gauge that is moved up and down."""

    kind = "gauge"

    def add(self, amount: float, **labels: str) -> None:
        """Moves it."""
        if self._instrument:
            self._instrument.add(amount, labels)

    def _make(self, meter: "Meter") -> Any:
        return meter.create_up_down_counter(self.declared.name, description=self.declared.description)


class Histogram(_Metric[Any]):
    """How often which size was met, in `buckets`."""

    kind = "histogram"

    def __init__(self, name: str, description: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        self._buckets = tuple(buckets)
        super().__init__(name, description, labels)

    def record(self, value: float, **labels: str) -> None:
        """Counts one."""
        if self._instrument:
            self._instrument.record(value, labels)

    def _make(self, meter: "Meter") -> Any:
        declared, buckets = self.declared, list(self._buckets)
        return meter.create_histogram(declared.name, description=declared.description, explicit_bucket_boundaries_advisory=buckets)


class Gauge(_Metric[Any]):
    """What was last found, until it is found otherwise or taken away."""

    kind = "gauge"

    def __init__(self, name: str, description: str, labels: Sequence[str]) -> None:
        self._values: dict[tuple[str, ...], float] = {}
        super().__init__(name, description, labels)

    def set(self, value: float, **labels: str) -> None:
        """Under these labels; those under others stay."""
        self._values = {**self._values, self._key(labels): value}

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """All there is, by the values of the labels in their order."""
        self._values = dict(values)

    def take_away(self, **labels: str) -> None:
        """Nobody looks any more: a last value would be taken for a present one."""
        self._values = {key: value for key, value in self._values.items() if key != self._key(labels)} if labels else {}

    def _key(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(labels[name] for name in self.declared.labels)

    def _make(self, meter: "Meter") -> Any:
        from opentelemetry.metrics import Observation

        def observe(_options: "CallbackOptions") -> "Iterable[Observation]":
            return [Observation(value, dict(zip(self.declared.labels, key, strict=True))) for key, value in self._values.items()]

        return meter.create_observable_gauge(self.declared.name, [observe], description=self.declared.description)


def counter(name: str, description: str, labels: Sequence[str] = ()) -> Counter:
    """`name` ends with _total."""
    return Counter(name, description, labels)


def level(name: str, description: str, labels: Sequence[str] = ()) -> Level:
    """For what begins and ends here."""
    return Level(name, description, labels)


def histogram(name: str, description: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS) -> Histogram:
    """`buckets` are upper bounds."""
    return Histogram(name, description, labels, buckets)


def gauge(name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
    """For what is looked up now and then; see Sampler."""
    return Gauge(name, description, labels)


def declared_metrics() -> list[Declared]:
    """Of all modules that are loaded, by name."""
    return [_declared[name].declared for name in sorted(_declared)]


def metrics_on() -> bool:
    """Whether anybody reads them: if not, nobody need look anything up."""
    return _meter is not None


def bind_metrics(meter: "Meter | None") -> None:
    """Every metric, declared before or after, goes to this meter; None: nowhere."""
    global _meter
    _meter = meter
    for metric in list(_declared.values()):
        metric.bind(meter)
