"""Traces and logs: who did what, for whom, in which request.

setup("data", url="sqlite:///var/lepton/traces.db", level="info")
with tracer().start_as_current_span("profile", attributes={WORKSPACE: workspace}):
    log.info("dataset_profiled", rows=rows)
"""

from opentelemetry.trace import Tracer, get_tracer

from libs.telemetry.logs import configure_logs
from libs.telemetry.naming import SERVICE, WORKSPACE, InService, as_service, current_service
from libs.telemetry.redaction import redacted
from libs.telemetry.sqlite import SqliteSink, SqliteTraceStore
from libs.telemetry.store import Span, TraceStore, sqlite_path
from libs.telemetry.tracing import current_trace_id, extract, flush, inject, record_span, start_tracing, stop_tracing

__all__ = [
    "SERVICE",
    "WORKSPACE",
    "InService",
    "Span",
    "SqliteTraceStore",
    "TraceStore",
    "as_service",
    "current_service",
    "current_trace_id",
    "extract",
    "flush",
    "inject",
    "open_trace_store",
    "record_span",
    "redacted",
    "setup",
    "shutdown",
    "tracer",
]


def setup(service: str, *, url: str = "none:", level: str = "info", style: str = "auto") -> None:
    """Once a process, before anything else: `service` is its name, `url` where spans go ("sqlite:///path/traces.db" or "none:").

    `style` of logs: "json", "console", or "auto". Raises ValueError with what would be right. Again: the new settings hold.
    """
    path = sqlite_path(url)
    configure_logs(level, style)
    start_tracing(service, SqliteSink(path) if path else None)


def shutdown() -> None:
    """Writes the spans that have ended. The process's last act."""
    stop_tracing()


def tracer() -> Tracer:
    """For spans of this process; their service is found by where they begin (`as_service`, `InService`)."""
    return get_tracer("lepton")


class _NoTraces:
    async def spans(self, trace_id: str) -> list[Span]:
        return []


def open_trace_store(url: str) -> TraceStore:
    """Reads what `setup` with the same URL writes."""
    path = sqlite_path(url)
    return SqliteTraceStore(path) if path else _NoTraces()
