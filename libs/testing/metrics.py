"""What a piece of code has counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from libs.telemetry import declared_metrics
from libs.telemetry.metrics import bind_metrics

Read = Callable[[str], dict[tuple[str, ...], Any]]


@contextmanager
def metrics_read() -> Iterator[Read]:
    """Metrics are on within. The function answers a metric's values by its labels' values, in their declared order; of a histogram, counts.

    Raises AssertionError where a value has other labels than are declared.
    """
    reader = InMemoryMetricReader()
    bind_metrics(MeterProvider([reader], shutdown_on_exit=False).get_meter("tests"))

    def read(name: str) -> dict[tuple[str, ...], Any]:
        (declared,) = [each for each in declared_metrics() if each.name == name]
        data = reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else ()
        points = [point for scope in scopes for metric in scope.metrics if metric.name == name for point in metric.data.data_points]
        found = {}
        for point in points:
            labels = dict(point.attributes or {})
            assert set(labels) == set(declared.labels), f"{name} has the labels {sorted(labels)}; declared are {declared.labels}"
            values = tuple(str(labels[label]) for label in declared.labels)
            found[values] = point.value if isinstance(point, NumberDataPoint) else point.count
        return found

    try:
        yield read
    finally:
        bind_metrics(None)
