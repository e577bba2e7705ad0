"""Whose work it is: services that share a process keep their names in traces and logs.

A span's service is, first found: its own attribute `service.name`; for an answer to a gRPC call the service in the method's name; for the
handling of an event the tracer's name; the service of the local span around it; `as_service` around the code; the process's own name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

SERVICE = "service.name"
WORKSPACE = "lepton.workspace"

_service: ContextVar[str] = ContextVar("lepton_service", default="")
_process = "lepton"


class Component(Protocol):
    """As libs/lifecycle has it."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def name_process(service: str) -> None:
    """The name of work that nothing else names."""
    global _process
    _process = service


@contextmanager
def as_service(name: str) -> Iterator[None]:
    """Work in the block, and tasks that it starts, is done by `name`."""
    token = _service.set(name)
    try:
        yield
    finally:
        _service.reset(token)


class InService:
    """A lifecycle component whose work, tasks included, is done by `name`."""

    def __init__(self, name: str, component: Component) -> None:
        self.name, self._component = name, component

    async def start(self) -> None:
        """Starts the component."""
        with as_service(self.name):
            await self._component.start()

    async def stop(self) -> None:
        """Stops the component."""
        with as_service(self.name):
            await self._component.stop()


def current_service() -> str:
    """Who does the work at hand."""
    return str(attribute(trace.get_current_span(), SERVICE) or _service.get() or _process)


def current_workspace() -> str:
    """For which tenant the span around is, if it says so."""
    return str(attribute(trace.get_current_span(), WORKSPACE) or "")


def names_of(span: ReadableSpan, context: Context | None) -> dict[str, str]:
    """The attributes that a span that begins lacks: its service, and its tenant where the local span around it has one."""
    own = span.attributes or {}
    around = trace.get_current_span(context)
    names = {}
    if SERVICE not in own:
        names[SERVICE] = _by_kind(span) or str(attribute(around, SERVICE) or _service.get() or _process)
    if WORKSPACE not in own and (workspace := attribute(around, WORKSPACE)):
        names[WORKSPACE] = str(workspace)
    return names


def _by_kind(span: ReadableSpan) -> str:
    if span.kind is SpanKind.SERVER:
        called = str((span.attributes or {}).get("rpc.service", "")).split(".")
        return called[1] if len(called) > 2 else ""
    if span.kind is SpanKind.CONSUMER and span.instrumentation_scope:
        return span.instrumentation_scope.name
    return ""


def attribute(span: trace.Span, name: str) -> Any:
    """An attribute of a span of this process; None of one elsewhere."""
    return (span.attributes or {}).get(name) if isinstance(span, ReadableSpan) else None
