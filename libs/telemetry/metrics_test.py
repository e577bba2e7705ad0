"""Metrics cost nothing until somebody reads them; gauges show what is, or nothing."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from libs.errors import Transient
from libs.telemetry import Sampler, counter, declared_metrics, gauge, histogram, level, metrics_on
from libs.telemetry.metrics import bind_metrics

_done = counter("lepton_test_done_total", "Done.", ("outcome",))
_busy = level("lepton_test_busy", "Busy.")
_seconds = histogram("lepton_test_seconds", "Seconds.", ("route",), buckets=(0.1, 1.0))
_things = gauge("lepton_test_things", "Things.", ("state", "pool"))


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    bind_metrics(MeterProvider([reader], shutdown_on_exit=False).get_meter("tests"))
    yield reader
    bind_metrics(None)


def read(reader: InMemoryMetricReader, name: str) -> dict[tuple[str, ...], Any]:
    """By the labels' values."""
    data = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
        if metric.name == name:
            return {tuple(map(str, point.attributes.values())): value(point) for point in metric.data.data_points}
    return {}


def value(point: Any) -> Any:
    return list(point.bucket_counts) if isinstance(point, HistogramDataPoint) else point.value


def test_nobody_reads_them_at_first() -> None:
    assert not metrics_on()
    _done.add(1, outcome="lost")
    _busy.add(1)
    _seconds.record(1, route="x")


def test_counts_and_sizes(reader: InMemoryMetricReader) -> None:
    for outcome in ("done", "done", "failed"):
        _done.add(1, outcome=outcome)
    _busy.add(2)
    _busy.add(-1)
    for seconds in (0.05, 0.5, 0.6, 7):
        _seconds.record(seconds, route="/v1/x")
    assert read(reader, "lepton_test_done_total") == {("done",): 2, ("failed",): 1}
    assert read(reader, "lepton_test_busy") == {(): 1}
    assert read(reader, "lepton_test_seconds") == {("/v1/x",): [1, 2, 1]}


def test_one_that_is_declared_late_is_read_too(reader: InMemoryMetricReader) -> None:
    name = "lepton_test_late_total"
    counter(name, "Late.").add(3)
    assert read(reader, name) == {(): 3}
    with pytest.raises(ValueError, match="declared twice"):
        counter(name, "Again.")
    (declared,) = [metric for metric in declared_metrics() if metric.name == "lepton_test_things"]
    assert (declared.kind, declared.labels, declared.description) == ("gauge", ("state", "pool"), "Things.")


def test_a_gauge_shows_what_was_last_found(reader: InMemoryMetricReader) -> None:
    _things.show({("new", "a"): 1, ("old", "a"): 2})
    _things.set(5, pool="b", state="new")
    assert read(reader, "lepton_test_things") == {("new", "a"): 1, ("old", "a"): 2, ("new", "b"): 5}
    _things.take_away(state="old", pool="a")
    assert read(reader, "lepton_test_things") == {("new", "a"): 1, ("new", "b"): 5}
    _things.show({})
    assert read(reader, "lepton_test_things") == {}


async def test_a_sampler_looks_only_where_somebody_reads() -> None:
    async def sample() -> None:
        raise AssertionError("nobody asked")

    sampler = Sampler("test", sample, [_things])
    await sampler.start()
    await asyncio.sleep(0)
    await sampler.stop()


async def test_what_cannot_be_looked_up_is_not_shown(reader: InMemoryMetricReader) -> None:
    away = asyncio.Event()
    looked: asyncio.Queue[None] = asyncio.Queue()

    async def sample() -> None:
        looked.put_nowait(None)
        if away.is_set():
            raise Transient("the database is away")
        _things.set(1, state="new", pool="a")

    _things.show({("other", "service"): 7})
    sampler = Sampler("test", sample, [_things], state="new", pool="a")
    await sampler.start()
    await looked.get()
    assert read(reader, "lepton_test_things") == {("other", "service"): 7, ("new", "a"): 1}
    away.set()
    sampler._loop.wake()
    await looked.get()
    await asyncio.sleep(0)
    assert read(reader, "lepton_test_things") == {("other", "service"): 7}
    away.clear()
    sampler._loop.wake()
    await looked.get()
    await sampler.stop()
    assert read(reader, "lepton_test_things") == {("other", "service"): 7}
    _things.show({})


def test_what_is_not_asked_for_is_not_imported() -> None:
    code = """
import sys
from libs import telemetry
telemetry.setup("x", url="sqlite:///tmp/never-written.db")
heavy = ("opentelemetry.exporter", "opentelemetry.sdk.metrics", "prometheus_client", "requests")
print([name for name in sys.modules if name.startswith(heavy)])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
