"""How the gateway says no: RFC 9457 for our own paths, {"error": "…"} for the Open Inference Protocol, {"error": {…}} for OpenAI's API,
over gRPC a status with words.

Knows codes and paths; not what went wrong.
"""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from libs.errors import AppError, Invalid, Violation
from libs.errors.catalogue import CATALOGUE
from libs.errors.openai import openai_document, openai_status
from libs.inference import SERVICE
from libs.rpc.problem import error_class
from libs.telemetry import current_trace_id

PROBLEM_JSON = "application/problem+json"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
# Of both: problems that OpenAI's clients read, too.
_SHARED = "/v1/models"
# What the paths of calls over gRPC begin with, and the header that names the status of one that is refused.
RPC, RPC_STATUS = f"/{SERVICE}/", "grpc-status"
# In an error's meta; the header says it too.
RETRY_AFTER = "retry_after_seconds"
# Members of a problem that no meta key may replace.
_OWN = {"type", "title", "status", "detail", "instance", "code", "errors", "trace_id", "retryable"}


class Problems:
    """Renders errors; `base` is what a problem's type begins with."""

    def __init__(self, base: str) -> None:
        self._base = base if base.endswith("/") else base + "/"

    def response(self, scope: Scope, error: AppError, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
        """In the form of the path's family. `status` replaces the catalogue's where HTTP has a better one."""
        status = status or error.entry.http
        path, headers = scope.get("path", ""), {**_advice(error, status), **(headers or {})}
        if path.startswith(RPC):
            return Response(error.detail.encode("utf-8", "replace"), status, {**headers, RPC_STATUS: error.entry.grpc})
        if path == "/v2" or path.startswith("/v2/"):
            # The protocol's clients expect 400 for whatever is wrong with a request.
            status = 400 if status == 422 else status
            content, media_type = encode({"error": error.detail}), "application/json"
        elif path in OPENAI_PATHS:
            status = openai_status(error)
            content, media_type = encode(openai_document(error)), "application/json"
        else:
            shared = openai_document(error) if path == _SHARED or path.startswith(_SHARED + "/") else {}
            content, media_type = encode(self.document(error, path, status) | shared), PROBLEM_JSON
        return Response(content, status, headers, media_type)

    def document(self, error: AppError, instance: str, status: int | None = None) -> dict[str, Any]:
        """The problem as RFC 9457 has it; meta keys are extensions."""
        status = status or error.entry.http
        document: dict[str, Any] = {
            "type": self._base + error.code,
            "title": error.entry.title,
            "status": status,
            "detail": error.detail,
            "instance": instance,
            "code": error.code,
            "errors": [{"field": each.field, "message": each.message, "suggestions": list(each.suggestions)} for each in error.errors],
            "trace_id": current_trace_id(),
            "retryable": error.entry.retryable,
        }
        return {key: value for key, value in error.meta.items() if key not in _OWN} | document


def from_document(document: Any, fallback: str) -> AppError:
    """The error of a problem that a replica answered with."""
    known = document if isinstance(document, dict) else {}
    code = str(known.get("code"))
    if code not in CATALOGUE:
        code = "upstream_failed"
    detail = known.get("detail")
    errors = [_violation(each) for each in known.get("errors") or () if isinstance(each, dict)]
    return error_class(code)(detail if isinstance(detail, str) else fallback, code=code, errors=errors)


def _violation(document: dict[str, Any]) -> Violation:
    suggestions = document.get("suggestions") or []
    return Violation(str(document.get("field", "")), str(document.get("message", "")), tuple(map(str, suggestions)))


def too_large(what: str, limit: int) -> Invalid:
    """What exceeds how many bytes, in words."""
    return Invalid(f"{what} is larger than {in_units(limit)}", code="too_large", meta={"limit_bytes": limit})


def in_units(size: int) -> str:
    """A number of bytes, in words."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} bytes"


def encode(value: Any) -> bytes:
    """JSON of our own values; text that is no Unicode becomes question marks, since an error must be sayable."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_clean(value), default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _advice(error: AppError, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": 'Bearer realm="lepton"'}
    seconds = error.meta.get(RETRY_AFTER, 1 if status == 503 else 0)
    return {"retry-after": str(seconds)} if seconds else {}
