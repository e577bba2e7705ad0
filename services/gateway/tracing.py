"""Outermost layer: a server span for each request, its id on each response, and an answer for whatever was not answered inside."""

import time

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.errors import AppError
from libs.telemetry import SERVICE, counter, current_trace_id, draw, extract, histogram, level
from services.gateway.operations import TEMPLATE
from services.gateway.problems import Problems

TRACE_HEADER = b"x-lepton-trace-id"
# Asked every few seconds by whoever watches; their traces would only bury the others.
_UNTRACED = ("/healthz", "/readyz")
_COMMON_HEADERS = [(b"x-content-type-options", b"nosniff")]
_CARRIED = (b"traceparent", b"tracestate")
# A client may make up more.
_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_requests = counter("lepton_http_requests_total", "Requests that were answered, or broken off.", ("route", "method", "code"))
_duration = histogram("lepton_http_request_duration_seconds", "From a request's head to the last byte of its answer.", ("route",))
_in_flight = level("lepton_http_requests_in_flight", "Requests that are being answered.")
_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("services.gateway")


class Tracing:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, problems: Problems) -> None:
        self._app = app
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        _in_flight.add(1)
        code = 500
        try:
            code = await self._traced(scope, receive, send)
        finally:
            _in_flight.add(-1)
            # Where nothing is, anything may be asked for: a path would make a label of each.
            route = scope.get(TEMPLATE, "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            _requests.add(1, route=route, method=method, code=str(code))
            _duration.record(time.perf_counter() - started, route=route)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> int:
        if scope["path"] in _UNTRACED:
            return await self._answer(scope, receive, send)
        parent, headers = Context(), dict(scope["headers"])
        if b"traceparent" in headers:
            parent = extract({name.decode(): headers[name].decode("latin-1") for name in _CARRIED if name in headers})
        if not parent:
            drawn = draw()
            if isinstance(drawn, NonRecordingSpan):
                with trace.use_span(drawn, record_exception=False, set_status_on_exception=False):
                    return await self._answer(scope, receive, send)
            parent = drawn
        attributes = {SERVICE: "gateway", "http.request.method": scope["method"], "url.path": scope["path"]}
        with _tracer.start_as_current_span(
            scope["method"],
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            status = await self._answer(scope, receive, send)
            if template := scope.get(TEMPLATE):
                span.update_name(f"{scope['method']} {template}")
                span.set_attribute("http.route", template)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            return status

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        status = 0
        extra = list(_COMMON_HEADERS)
        if trace_id := current_trace_id():
            extra.append((TRACE_HEADER, trace_id.encode()))

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_trace)
        except ClientDisconnect:
            return status or 499
        except Exception as error:
            problem = (
                error if isinstance(error, AppError) else AppError("the platform made a mistake; its log says which, under the trace id")
            )
            if problem.code == "internal":
                _log.error("request_failed", method=scope["method"], path=scope["path"], exc_info=error)
            if status:
                # The answer has begun: breaking it off is the only way left to say so.
                raise
            await self._problems.response(scope, problem)(scope, receive, send_with_trace)
        return status
