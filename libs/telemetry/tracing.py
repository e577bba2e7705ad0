"""Spans from OpenTelemetry to a sink, in the background; what the sink is, `setup` decides.

A span costs its maker microseconds: it is put into a bounded queue, and dropped where that is full.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from libs.telemetry.background import Background, Sink
from libs.telemetry.naming import SERVICE, name_process, names_of

QUEUE_SPANS = 8192


class Pipeline(SpanProcessor):
    """Names spans as they begin and queues them after they end, if they are of a trace that is kept."""

    def __init__(self) -> None:
        self.spans: Background[ReadableSpan] = Background("spans", QUEUE_SPANS)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Adds the names that the span lacks."""
        span.set_attributes(names_of(span, parent_context))

    def on_end(self, span: ReadableSpan) -> None:
        """Queues the span."""
        if span.context and span.context.trace_flags.sampled:
            self.spans.put(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Writes what is queued, now."""
        return self.spans.flush()


class _Share(Sampler):
    """Keeps a share of the traces that begin here; of others, those that are kept where they began.

    Spans that are not kept still have names: log lines take theirs from them.
    """

    def __init__(self) -> None:
        self.of(1.0)

    def of(self, share: float) -> None:
        """Between 0 and 1; raises ValueError on others."""
        self._own = TraceIdRatioBased(share)

    def draws(self, trace_id: int) -> bool:
        """Whether a trace of this id, begun here, is kept."""
        return self._own.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        """See Sampler."""
        parent = trace.get_current_span(parent_context).get_span_context()
        if parent_context is not None and get_value(_DRAWN, parent_context):
            kept, state = True, None
        elif parent.is_valid:
            kept, state = parent.trace_flags.sampled, parent.trace_state
        else:
            kept, state = self.draws(trace_id), None
        return SamplingResult(Decision.RECORD_AND_SAMPLE if kept else Decision.RECORD_ONLY, attributes, state)

    def get_description(self) -> str:
        """See Sampler."""
        return self._own.get_description()


# In the context of a trace of which it was drawn that it is kept, before it began.
_DRAWN = create_key("drawn")
_NOT_KEPT = TraceFlags(TraceFlags.DEFAULT)
_ids = RandomIdGenerator()
_pipeline = Pipeline()
_share = _Share()


def start_tracing(service: str, sink: Sink[ReadableSpan] | None, share: float = 1.0) -> None:
    """Makes this process's spans go to `sink`. OpenTelemetry takes one provider a process for good; its sink can be changed."""
    name_process(service)
    _share.of(share)
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource({SERVICE: service}), sampler=_share, shutdown_on_exit=False)
        provider.add_span_processor(_pipeline)
        trace.set_tracer_provider(provider)
        # Trace context only: baggage from outside has no business in here.
        propagate.set_global_textmap(TraceContextTextMapPropagator())
    _pipeline.spans.open(sink)


def end_tracing() -> None:
    """Begins to stop."""
    _pipeline.spans.end()


def stop_tracing() -> None:
    """Writes what is queued; later spans are dropped."""
    _pipeline.spans.close()


def flush() -> bool:
    """Writes finished spans now; whether that worked."""
    return _pipeline.force_flush()


def inject() -> dict[str, str]:
    """Headers that carry the current trace to another process: traceparent, tracestate."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}
    if context.trace_state:
        headers["tracestate"] = context.trace_state.to_header()
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The trace that headers of another process carry; an empty context if they are missing or malformed."""
    return propagate.extract(dict(headers), context=Context())


def draw() -> Context | NonRecordingSpan:
    """For a hot path that begins a trace: a context to begin a span in; or, where it is not kept, a span that costs nearly nothing."""
    trace_id = _ids.generate_trace_id()
    if _share.draws(trace_id):
        return set_value(_DRAWN, True, Context())
    return NonRecordingSpan(SpanContext(trace_id, _ids.generate_span_id(), False, _NOT_KEPT))


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
    # Kept where its trace is.
    context = SpanContext(parent.trace_id, int(digits, 16), False, parent.trace_flags)
    attributes = {**reported.get("attributes", {})}
    if service := reported.get("service"):
        attributes[SERVICE] = service
    error = str(reported.get("error", ""))
    span = ReadableSpan(
        name,
        context,
        parent,
        Resource.get_empty(),
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
