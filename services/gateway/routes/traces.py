"""One trace, as far as it is the caller's."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from libs.errors import AppError, NotFound
from libs.rpc import current_call
from libs.rpc.schema import Schemas
from libs.telemetry import WORKSPACE, Span, TraceStore
from services.gateway import documents
from services.gateway.messages import json_response, query_values
from services.gateway.operations import Operation

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_STRING = {"type": "string"}
# Only the spans of requests from outside have it.
_REQUEST = "url.path"


class Traces:
    """Handler of the one route."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    def operations(self) -> list[Operation]:
        """It."""
        return [Operation("GET", "/v1/traces/{id}", self.get, _describe)]

    async def get(self, request: Request) -> Response:
        """The spans below requests of the caller's workspace. Callers choose trace ids, so others may have used the same one."""
        query_values(request, {})
        trace_id = request.path_params["id"].lower()
        spans: list[Span] = []
        if _TRACE_ID.fullmatch(trace_id):
            spans = _owned(await self._store.spans(trace_id), current_call().identity.workspace)
        if not spans:
            raise NotFound(f"there is no trace '{trace_id[:64]}' of this workspace; traces are kept for a while only")
        return json_response({"trace_id": trace_id, "spans": [_shown(span) for span in spans]})


class Elsewhere:
    """Stands where no trace store can be read; `why` says how one could."""

    def __init__(self, why: str) -> None:
        self._why = why

    async def spans(self, trace_id: str) -> list[Span]:
        """Raises AppError, always."""
        raise AppError(self._why, code="unimplemented")


def _owned(spans: Sequence[Span], workspace: str) -> list[Span]:
    by_id = {span.span_id: span for span in spans}
    owners: dict[str, bool] = {}

    def owned(span: Span) -> bool:
        path = []
        while span.span_id not in owners:
            path.append(span.span_id)
            # Marked before it is known, for spans that name each other as parents.
            owners[span.span_id] = False
            parent = by_id.get(span.parent_id)
            # A request is its sender's, even if they have named another's span as its parent.
            if parent is None or _REQUEST in span.attributes:
                owners[span.span_id] = span.attributes.get(WORKSPACE) == workspace
                break
            span = parent
        answer = owners[span.span_id]
        for each in path:
            owners[each] = answer
        return answer

    return sorted((span for span in spans if owned(span)), key=lambda span: span.start_ns)


def _shown(span: Span) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "name": span.name,
        "service": span.service,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "status": span.status,
        "attributes": dict(span.attributes),
    }


def _describe(_schemas: Schemas) -> dict[str, Any]:
    time = {"type": "integer", "format": "int64", "minimum": 0}
    properties = {
        **dict.fromkeys(("trace_id", "span_id", "parent_id", "name", "service", "status"), _STRING),
        "start_ns": {**time, "description": "Nanoseconds since 1970."},
        "end_ns": time,
        "attributes": {"type": "object", "additionalProperties": True},
    }
    span = {"type": "object", "required": list(properties), "properties": properties}
    schema = {
        "type": "object",
        "required": ["trace_id", "spans"],
        "properties": {"trace_id": _STRING, "spans": {"type": "array", "items": span}},
    }
    return documents.operation(
        "traces",
        "GetTrace",
        "Get trace",
        description="The spans of a request of this workspace and of all that it caused, by their beginning. "
        "The id is in the header x-lepton-trace-id of every answer.",
        parameters=[documents.parameter("path", "id", {"type": "string", "pattern": "^[0-9a-f]{32}$"})],
        answers={"200": documents.answer("The spans.", "application/json", schema)},
    )
