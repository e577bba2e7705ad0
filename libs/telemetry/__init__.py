"""Traces, logs and metrics: who did what, for whom, in which request; and how much of it.

setup("data", url="sqlite:///var/lepton/traces.db", level="info")
with tracer().start_as_current_span("profile", attributes={WORKSPACE: workspace}):
    log.info("dataset_profiled", rows=rows)
    PROFILES.add(1, outcome="done")  # PROFILES = counter("lepton_profiles_total", "Profiles that ended.", ("outcome",))
"""

from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from opentelemetry.trace import Tracer, get_tracer

from libs.telemetry.background import Sink
from libs.telemetry.logs import Line, configure_logs, end_logs, send_logs, stop_logs
from libs.telemetry.metrics import LONG_SECONDS, bind_metrics, counter, declared_metrics, gauge, histogram, level, metrics_on
from libs.telemetry.naming import SERVICE, WORKSPACE, InService, as_service, current_service
from libs.telemetry.redaction import redacted
from libs.telemetry.sampling import Sampler
from libs.telemetry.sqlite import SqliteSink, SqliteTraceStore
from libs.telemetry.store import Place, Span, TraceStore, place_of
from libs.telemetry.tracing import current_trace_id, draw, end_tracing, extract, flush, inject, record_span, start_tracing, stop_tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import ReadableSpan

    from libs.telemetry.prometheus import MetricsServer

__all__ = [
    "LONG_SECONDS",
    "SERVICE",
    "WORKSPACE",
    "InService",
    "Sampler",
    "Span",
    "SqliteTraceStore",
    "TraceStore",
    "as_service",
    "counter",
    "current_service",
    "current_trace_id",
    "declared_metrics",
    "draw",
    "extract",
    "flush",
    "gauge",
    "histogram",
    "inject",
    "level",
    "metrics_address",
    "metrics_on",
    "open_trace_store",
    "record_span",
    "redacted",
    "setup",
    "shutdown",
    "tracer",
]

log = structlog.get_logger()

STOP_SECONDS = 3.0
_provider: "MeterProvider | None" = None
_metrics_server: "MetricsServer | None" = None


def setup(
    service: str, *, url: str = "none:", level: str = "info", style: str = "auto", metrics_listen: str = "", sample: float = 1.0
) -> None:
    """Once a process, before anything else: `service` is its name, `url` where telemetry goes.

    "sqlite:///path/traces.db" keeps spans; "otlp+http://collector:4318" sends spans, logs and metrics to an OpenTelemetry collector;
    "none:" drops them. At `metrics_listen` ("0.0.0.0:9464") Prometheus finds the metrics, wherever the rest goes. `sample` is the share
    of the traces begun here that is kept. `style` of logs: "json", "console", or "auto". Raises ValueError with what would be right, and
    OSError when `metrics_listen` is taken. Again: the new settings hold.
    """
    place = place_of(url, kinds=("none", "sqlite", "otlp"))
    if not 0 <= sample <= 1:
        raise ValueError(f"telemetry_sample {sample:g}: must be a share between 0 and 1")
    configure_logs(level, style)
    _stop_metrics()
    spans, lines = _sinks(place)
    start_tracing(service, spans, sample)
    send_logs(lines)
    _start_metrics(service, place, metrics_listen)


def shutdown() -> None:
    """Writes what has been said and has ended; a collector that is away is waited for three seconds. The process's last act."""
    end_tracing()
    end_logs()
    _stop_metrics()
    stop_tracing()
    stop_logs()


def tracer() -> Tracer:
    """For spans of this process; their service is found by where they begin (`as_service`, `InService`)."""
    return get_tracer("lepton")


def metrics_address() -> str:
    """Where Prometheus finds the metrics, "host:port"; empty where `setup` was not told to offer them."""
    return _metrics_server.address if _metrics_server else ""


class _NoTraces:
    async def spans(self, trace_id: str) -> list[Span]:
        return []


def open_trace_store(url: str) -> TraceStore:
    """Reads what `setup` has written: by the same URL, or by that of the Jaeger to which a collector passes spans on.

    Raises ValueError with what would be right.
    """
    place = place_of(url, kinds=("none", "sqlite", "jaeger"))
    if place.kind == "jaeger":
        from libs.telemetry.jaeger import JaegerTraceStore

        return JaegerTraceStore(place.at)
    return SqliteTraceStore(Path(place.at)) if place.kind == "sqlite" else _NoTraces()


def _sinks(place: Place) -> "tuple[Sink[ReadableSpan] | None, Sink[Line] | None]":
    if place.kind == "otlp":
        from libs.telemetry.otlp import LogSink, SpanSink

        return SpanSink(place.at), LogSink(place.at)
    return (SqliteSink(Path(place.at)) if place.kind == "sqlite" else None), None


def _start_metrics(service: str, place: Place, listen: str) -> None:
    global _provider, _metrics_server
    if place.kind != "otlp" and not listen:
        return
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider

    from libs.telemetry.resource import resource_of

    readers: list[MetricReader] = []
    if listen:
        from libs.telemetry.prometheus import MetricsServer

        _metrics_server = MetricsServer(listen)
        readers.append(_metrics_server.reader)
    if place.kind == "otlp":
        from libs.telemetry.otlp import metric_reader

        readers.append(metric_reader(place.at))
    _provider = MeterProvider(readers, resource_of(service), AlwaysOffExemplarFilter(), shutdown_on_exit=False)
    bind_metrics(_provider.get_meter("lepton"))


def _stop_metrics() -> None:
    global _provider, _metrics_server
    if _metrics_server:
        _metrics_server.close()
    if _provider:
        try:
            # Sends once more what there is.
            _provider.shutdown(STOP_SECONDS * 1000)
        except Exception:
            log.warning("metrics_not_sent", exc_info=True)
    bind_metrics(None)
    _provider = _metrics_server = None
