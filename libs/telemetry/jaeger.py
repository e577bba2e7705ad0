"""Traces that a collector has passed on to Jaeger, read through its query API. Loaded only where a setting names one.

Jaeger counts in microseconds, and keeps lists as the JSON that spells them.
"""

import asyncio
import re
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import orjson

from libs.errors import AppError, Transient
from libs.telemetry.store import READ_SPANS, Span

READ_BYTES = 64 << 20
TIMEOUT_SECONDS = 5.0
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
# What Jaeger adds of its own to what a span said.
_OWN_TAGS = frozenset(
    ("error", "internal.span.format", "otel.scope.name", "otel.scope.version", "otel.status_code", "otel.status_description", "span.kind")
)


class JaegerTraceStore:
    """Reads spans; see TraceStore. `at` is the URL of Jaeger's web interface."""

    def __init__(self, at: str) -> None:
        self._at = at
        # Inside of a platform: no proxy stands between its parts.
        self._opener = build_opener(ProxyHandler({}))

    async def spans(self, trace_id: str) -> list[Span]:
        """See TraceStore."""
        trace_id = trace_id.lower()
        if not _TRACE_ID.fullmatch(trace_id):
            return []
        document = await asyncio.to_thread(self._read, trace_id)
        try:
            spans = [span for trace in document["data"] or () for span in _spans(trace)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AppError(f"{self._at} keeps the traces and gave an answer that is none of Jaeger's", code="upstream_failed") from error
        # A span that was reported twice is one.
        by_id = {span.span_id: span for span in reversed(spans)}
        return sorted(by_id.values(), key=lambda span: span.start_ns)[:READ_SPANS]

    def _read(self, trace_id: str) -> Any:
        try:
            with self._opener.open(f"{self._at}/api/traces/{trace_id}", timeout=TIMEOUT_SECONDS) as answer:
                content = answer.read(READ_BYTES + 1)
        except HTTPError as error:
            with error:
                if error.code == 404:
                    return {"data": None}
                raise Transient(f"{self._at} keeps the traces and answers {error.code}; try again") from error
        except (OSError, HTTPException) as error:
            raise Transient(f"{self._at} keeps the traces and cannot be reached; try again") from error
        if len(content) > READ_BYTES:
            raise AppError(f"trace {trace_id} is larger than {READ_BYTES >> 20} MiB; {self._at} shows it", code="too_large")
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise AppError(f"{self._at} keeps the traces and gave an answer that is not JSON", code="upstream_failed") from error


def _spans(trace: dict[str, Any]) -> list[Span]:
    services = {key: str(process["serviceName"]) for key, process in trace["processes"].items()}
    return [_span(span, services) for span in trace["spans"]]


def _span(span: dict[str, Any], services: dict[str, str]) -> Span:
    # Numbers that JavaScript could not hold come as text.
    tags = {tag["key"]: int(tag["value"]) if tag["type"] == "int64" else tag["value"] for tag in span["tags"]}
    parents = [each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF" and each["traceID"] == span["traceID"]]
    start = int(span["startTime"]) * 1000
    failed = tags.get("otel.status_code") == "ERROR"
    return Span(
        trace_id=span["traceID"].zfill(32),
        span_id=span["spanID"],
        parent_id=parents[0] if parents else "",
        name=span["operationName"],
        service=services[span["processID"]],
        start_ns=start,
        end_ns=start + int(span["duration"]) * 1000,
        status=(str(tags.get("otel.status_description") or "error")) if failed else "",
        attributes={name: value for name, value in tags.items() if name not in _OWN_TAGS},
    )
