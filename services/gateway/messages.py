"""Reading requests and writing answers: bounded bodies, idempotency keys, JSON."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from libs.errors import Invalid, Violation, near
from libs.rpc.json_codec import loads
from services.gateway.http_server import WHOLE
from services.gateway.problems import too_large
from services.gateway.settings import Limits

JSON = "application/json"
# Answers are about one workspace and may hold secrets.
_NO_STORE = {"cache-control": "no-store"}
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body, at most `limit` bytes that come within `seconds`."""
    _require_plain(request)
    _check_declared(request, limit, "the body")
    parts, size, more = [], 0, True
    try:
        async with nullcontext() if request.scope.get(WHOLE) else asyncio.timeout(seconds):
            # Not by stream(): mostly the whole body is one message, and predictions are read here too.
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size > limit:
                    raise too_large("the body", limit)
                parts.append(chunk)
    except TimeoutError:
        raise Invalid(f"the body did not arrive within {seconds:g} s") from None
    return b"".join(parts)


async def read_chunks(request: Request, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes, at most `limit` bytes; a pause of more than `seconds` breaks it off."""
    _require_plain(request)
    _check_declared(request, limit, "the file")
    size = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise Invalid(f"the upload stood still for {seconds:g} s") from None
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise too_large("the file", limit)
        yield chunk


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """A JSON object; nothing at all is an empty one."""
    raw = await read_body(request, limits.json_bytes, limits.body_seconds)
    if not raw:
        return {}
    media_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        raise Invalid(f"the body's type is {media_type[:100] or 'not named'}; send content-type: {JSON}", code="unsupported_media_type")
    body = loads(raw)
    if not isinstance(body, dict):
        raise Invalid('the body must be a JSON object, such as {"name": "value"}')
    return body


def idempotency_key(request: Request) -> str:
    """The header's value, checked; empty without one."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return ""
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise Invalid.of([Violation("Idempotency-Key", "must be one header of 1 to 255 visible ASCII characters, without blanks")])
    return keys[0]


def query_values(request: Request, known: Mapping[str, bool]) -> dict[str, list[str]]:
    """Query parameters by name; `known` says of each whether it may be repeated. Unknown and repeated ones are refused."""
    values: dict[str, list[str]] = {}
    found: list[Violation] = []
    for name, value in request.query_params.multi_items():
        if name not in known:
            close = near(name, known)
            hint = (
                f"did you mean {' or '.join(close)}?"
                if close
                else f"there {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}"
            )
            found.append(Violation(name[:100], f"is not a query parameter here; {hint}", tuple(close)))
        elif name in values and not known[name]:
            found.append(Violation(name, "is given more than once"))
        values.setdefault(name, []).append(value)
        if len(found) > 20:
            break
    if found:
        raise Invalid.of(found)
    return values


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of our own."""
    return Response(orjson.dumps(value), status, {**_NO_STORE, **(headers or {})}, JSON)


def declared_size(request: Request) -> int:
    """How many bytes the body is said to have; 0 where nothing is said."""
    declared = request.headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else 0


def _check_declared(request: Request, limit: int, what: str) -> None:
    if declared_size(request) > limit:
        raise too_large(what, limit)


def _require_plain(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Invalid(f"the content encoding {encoding[:50]} is not supported; send the body as it is", code="unsupported_media_type")
