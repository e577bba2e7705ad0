"""How a replica says no: problem+json for records (RFC 9457), {"error": "..."} for the Open Inference Protocol."""

from typing import Any

import orjson

from libs.errors import CATALOGUE, AppError

# Headers as they stand on the wire.
PROBLEM = b"content-type: application/problem+json\r\n"
JSON = b"content-type: application/json\r\n"
OCTETS = b"content-type: application/octet-stream\r\n"


def problem(error: AppError) -> tuple[int, bytes]:
    """HTTP status and body."""
    entry = CATALOGUE[error.code]
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": entry.title,
        "status": entry.http,
        "code": error.code,
        "detail": error.detail,
        "errors": [{"field": v.field, "message": v.message, "suggestions": v.suggestions} for v in error.errors],
    }
    return entry.http, dump(body)


def protocol_error(error: AppError) -> tuple[int, bytes]:
    """HTTP status and body; clients of the protocol expect 400 for whatever is wrong with their tensors."""
    status = CATALOGUE[error.code].http
    return 400 if status == 422 else status, dump({"error": error.detail})


def dump(value: Any) -> bytes:
    """JSON; text that is no Unicode (a lone surrogate) becomes question marks, since an error must be sayable."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value
