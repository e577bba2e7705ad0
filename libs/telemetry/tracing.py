"""Spans from OpenTelemetry to a sink, in the background; what the sink is, `setup` decides.

A span costs its maker microseconds: it is put into a bounded queue, and dropped where that is full.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from libs.telemetry.naming import SERVICE, name_process, names_of

log = structlog.get_logger()

QUEUE_SPANS = 8192
FLUSH_SECONDS = 0.25
FLUSH_SPANS = 512


class Sink(Protocol):
    """Where finished spans go. Called from one thread; what it raises is logged and the spans are dropped."""

    def write(self, spans: Sequence[ReadableSpan]) -> None: ...

    def close(self) -> None: ...


class Pipeline(SpanProcessor):
    """Names spans as they begin and hands them to the sink after they end, within `FLUSH_SECONDS`."""

    def __init__(self) -> None:
        self._queue: deque[ReadableSpan] = deque(maxlen=QUEUE_SPANS)
        self._sink: Sink | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._flushing = threading.Lock()
        self.dropped = 0

    def open(self, sink: Sink | None) -> None:
        """Sends spans to `sink` from now on; None drops them."""
        self.close()
        self._sink = sink
        if sink:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Writes what is queued and closes the sink."""
        if self._thread:
            self._stopping = True
            self._wake.set()
            self._thread.join(5)
            self._thread = None
        if self._sink:
            self._sink.close()
            self._sink = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Adds the names that the span lacks."""
        span.set_attributes(names_of(span, parent_context))

    def on_end(self, span: ReadableSpan) -> None:
        """Queues the span."""
        if self._sink is None or not (span.context and span.context.trace_flags.sampled):
            return
        if len(self._queue) == QUEUE_SPANS:
            self.dropped += 1
        self._queue.append(span)
        if len(self._queue) >= FLUSH_SPANS and not self._wake.is_set():
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Writes what is queued, now."""
        with self._flushing:
            while self._queue and self._sink:
                batch = [self._queue.popleft() for _ in range(min(FLUSH_SPANS, len(self._queue)))]
                try:
                    self._sink.write(batch)
                except Exception:
                    self.dropped += len(batch)
                    log.warning("spans_dropped", count=len(batch), exc_info=True)
                    return False
        return True

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self.force_flush()


_pipeline = Pipeline()


def start_tracing(service: str, sink: Sink | None) -> None:
    """Makes this process's spans go to `sink`. OpenTelemetry takes one provider a process for good; its sink can be changed."""
    name_process(service)
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource({SERVICE: service}), shutdown_on_exit=False)
        provider.add_span_processor(_pipeline)
        trace.set_tracer_provider(provider)
        # Trace context only: baggage from outside has no business in here.
        propagate.set_global_textmap(TraceContextTextMapPropagator())
    _pipeline.open(sink)


def stop_tracing() -> None:
    """Writes what is queued; later spans are dropped."""
    _pipeline.close()


def flush() -> bool:
    """Writes finished spans now; whether that worked."""
    return _pipeline.force_flush()


def inject() -> dict[str, str]:
    """Headers that carry the current trace to another process: traceparent, tracestate."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The trace that headers of another process carry; an empty context if they are missing or malformed."""
    return propagate.extract(dict(headers), context=Context())


def current_trace_id() -> str:
    """32 hexadecimal digits; empty outside of a trace."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def record_span(reported: Mapping[str, Any]) -> str:
    """Adds a span that a process without OpenTelemetry has timed; answers its traceparent, for spans under it.

    `reported` has `name`, `start_ns`, `end_ns`, `traceparent` (of its parent), and perhaps `attributes`, `service`, `error` (its status
    is then an error) and `span_id`. The same report again is the same span. Without a valid parent it is not recorded.
    """
    parent = trace.get_current_span(extract({"traceparent": str(reported.get("traceparent", ""))})).get_span_context()
    if not parent.is_valid:
        return ""
    name, start, end = str(reported["name"]), int(reported["start_ns"]), int(reported["end_ns"])
    name_bytes = f"{parent.trace_id:x}/{parent.span_id:x}/{name}/{start}".encode()
    digits = str(reported.get("span_id") or hashlib.sha256(name_bytes).hexdigest()[:16])
    context = SpanContext(parent.trace_id, int(digits, 16), False, TraceFlags(TraceFlags.SAMPLED))
    attributes = {**reported.get("attributes", {})}
    if service := reported.get("service"):
        attributes[SERVICE] = service
    error = str(reported.get("error", ""))
    span = ReadableSpan(
        name,
        context,
        parent,
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        status=Status(StatusCode.ERROR, error) if error else Status(),
        start_time=start,
        end_time=end,
    )
    span._attributes = {**names_of(span, trace.set_span_in_context(NonRecordingSpan(parent))), **attributes}
    _pipeline.on_end(span)
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=trace.set_span_in_context(NonRecordingSpan(context), Context()))
    return carrier["traceparent"]
