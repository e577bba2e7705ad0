"""Spans, logs and metrics to an OpenTelemetry collector over HTTP. Loaded only where a setting names one.

Headers and certificates that a collector asks for are OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_HEADERS.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, Status

from libs.telemetry.logs import TEXT_LIMIT, Line
from libs.telemetry.naming import SERVICE
from libs.telemetry.redaction import redacted
from libs.telemetry.resource import resource_of

# For a batch, with the tries after a first one that failed.
TIMEOUT_SECONDS = 5.0
METRIC_MILLIS = 15_000
_SCOPE = InstrumentationScope("lepton")
_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
# Fields of a line that have places of their own in a record.
_PLACED = ("event", "level", "timestamp", "service", "trace_id")
# Largest that a record holds.
_INT64 = 1 << 63


class SpanSink:
    """See Sink."""

    def __init__(self, at: str) -> None:
        self._exporter = OTLPSpanExporter(f"{at}/v1/traces", timeout=TIMEOUT_SECONDS, compression=Compression.Gzip)
        self._words = _Words(OTLPSpanExporter)

    def write(self, batch: Sequence[ReadableSpan]) -> None:
        """Raises OSError, with the exporter's words, where the collector did not take them."""
        if self._exporter.export([_clean_span(span) for span in batch]) is not SpanExportResult.SUCCESS:
            raise OSError(f"the collector did not take the spans: {self._words.last()}")

    def close(self) -> None:
        """Also ends a try that is under way."""
        self._exporter.shutdown()


class LogSink:
    """See Sink."""

    def __init__(self, at: str) -> None:
        self._exporter = OTLPLogExporter(f"{at}/v1/logs", timeout=TIMEOUT_SECONDS, compression=Compression.Gzip)
        self._words = _Words(OTLPLogExporter)

    def write(self, batch: Sequence[Line]) -> None:
        """Raises OSError, with the exporter's words, where the collector did not take them."""
        if self._exporter.export([_record(line) for line in batch]) is not LogRecordExportResult.SUCCESS:
            raise OSError(f"the collector did not take the log lines: {self._words.last()}")

    def close(self) -> None:
        """Also ends a try that is under way."""
        self._exporter.shutdown()


class _Words(logging.Filter):
    """Keeps what an exporter says of a failure from the log, where each try would be a line, for the one line that the queue makes."""

    def __init__(self, exporter: type) -> None:
        super().__init__()
        self._said: deque[str] = deque(maxlen=2)
        logger = logging.getLogger(exporter.__module__)
        logger.filters[:] = [self]

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        self._said.append(record.getMessage())
        return False

    def last(self) -> str:
        """What was said since it was last asked."""
        words = " ".join(self._said)
        self._said.clear()
        return words


def metric_reader(at: str) -> MetricReader:
    """Sends all metrics every 15 s. What did not arrive is in the next sums."""
    # Where the collector is away, the spans say so.
    logging.getLogger(OTLPMetricExporter.__module__).setLevel(logging.CRITICAL)
    exporter = OTLPMetricExporter(f"{at}/v1/metrics", timeout=TIMEOUT_SECONDS, compression=Compression.Gzip)
    return PeriodicExportingMetricReader(exporter, export_interval_millis=METRIC_MILLIS, export_timeout_millis=TIMEOUT_SECONDS * 1000)


def _clean_span(span: ReadableSpan) -> ReadableSpan:
    attributes = _plain(span.attributes or {})
    service = str(attributes.pop(SERVICE, "") or span.resource.attributes.get(SERVICE, ""))
    description = span.status.description
    return ReadableSpan(
        _text(span.name),
        span.context,
        span.parent,
        resource_of(service),
        attributes,
        [Event(event.name, _plain(event.attributes or {}), event.timestamp) for event in span.events],
        span.links,
        span.kind,
        status=Status(span.status.status_code, _text(redacted(description)) if description else None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _record(line: Line) -> ReadableLogRecord:
    fields = {name: value for name, value in line.event.items() if name not in _PLACED}
    level = str(line.event.get("level", "info"))
    record = LogRecord(
        timestamp=line.time_ns,
        observed_timestamp=line.time_ns,
        context=trace.set_span_in_context(NonRecordingSpan(line.span), Context()),
        severity_text=level,
        severity_number=_SEVERITIES.get(level, SeverityNumber.INFO),
        body=_text(str(line.event.get("event", ""))),
        attributes=_plain(fields),
    )
    return ReadableLogRecord(record, resource_of(str(line.event.get("service", ""))), _SCOPE)


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Without secrets, and of nothing but what a record holds: one odd value must not cost the batch."""
    return {_text(str(name)): _value(value) for name, value in redacted(dict(attributes)).items()}


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, Mapping):
        return {_text(str(name)): _value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return _text(redacted(repr(value)))


def _text(text: str) -> str:
    if len(text) > TEXT_LIMIT:
        text = f"{text[:TEXT_LIMIT]}…"
    return text.encode("utf-8", "replace").decode()
