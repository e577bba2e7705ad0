"""The replica over HTTP, as a bare ASGI application: who may call, how large a call may be, and which path means what."""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from libs.errors import AppError, Invalid, NotFound, Unauthenticated, Violation
from libs.modelkit.runtime import Runtime
from services.deployment.replica.batching import Batcher
from services.deployment.replica.oip import SERVER, Protocol, parse
from services.deployment.replica.problems import JSON, PROBLEM, dump, problem, protocol_error

MAX_BODY = 32 << 20
MAX_INSTANCES = 10_000

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, bytes, Headers]

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_log = logging.getLogger("lepton.replica")


class Replica:
    """The ASGI application. `token` is what each request carries in x-lepton-replica-token."""

    def __init__(self, runtime: Runtime, token: str, name: str = "model", version: str = "") -> None:
        self._runtime = runtime
        self._token = token.encode()
        self._batcher = Batcher(runtime)
        self._protocol = Protocol(runtime, name, version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body, headers = await self._answer(scope, receive)
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = scope["path"]
        speaks_protocol = path == "/v2" or path.startswith("/v2/")
        try:
            try:
                headers = dict(scope["headers"])
                self._admit(headers)
                return await self._route(scope["method"], path, headers, receive)
            except AppError:
                raise
            except Exception as error:
                _log.exception("request_failed")
                raise AppError("the model could not answer; the replica's log says why", code="internal") from error
        except AppError as error:
            status, body = protocol_error(error) if speaks_protocol else problem(error)
            return status, body, [(b"content-type", JSON if speaks_protocol else PROBLEM)]

    def _admit(self, headers: dict[bytes, bytes]) -> None:
        if not hmac.compare_digest(headers.get(b"x-lepton-replica-token", b""), self._token):
            raise Unauthenticated("x-lepton-replica-token is missing or wrong; a replica is called through its endpoint")

    async def _route(self, method: str, path: str, headers: dict[bytes, bytes], receive: Receive) -> Answer:
        if path == "/predict":
            _require(method, "POST")
            return await self._predict(await read_body(headers, receive))
        if match := _MODEL.fullmatch(path):
            name, version, action = match.groups()
            self._require_model(name, version)
            if action == "/infer":
                _require(method, "POST")
                return await self._infer(headers, await read_body(headers, receive))
            _require(method, "GET", "HEAD")
            return _json({"name": self._protocol.name, "ready": True} if action else self._protocol.metadata())
        fixed = {
            "/healthz": {"status": "ok"},
            "/v2": SERVER,
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True, "live": True},
        }
        if path in fixed:
            _require(method, "GET", "HEAD")
            return _json(fixed[path])
        raise NotFound(f"there is nothing at {path[:100]}; there are /predict, /healthz and /v2/models/{self._protocol.name}")

    async def _predict(self, body: bytes) -> Answer:
        instances = parse(body).get("instances")
        if not isinstance(instances, list):
            message = 'it is missing or not a list; send {"instances": [{...}, ...]}'
            raise Invalid.of([Violation("instances", message)], code="invalid_record")
        _require_few(len(instances))
        if not instances:
            return _json({"predictions": []}, rows=0)
        answers = await self._batcher.answer(self._runtime.read(instances))
        return _json({"predictions": self._runtime.word(answers)}, rows=len(instances))

    async def _infer(self, headers: dict[bytes, bytes], body: bytes) -> Answer:
        length = headers.get(b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise Invalid("Inference-Header-Content-Length is not a number", code="invalid_request")
        request, raw = self._protocol.read(body, int(length[:12]) if length is not None else None)
        self._protocol.check_outputs(request)
        _require_few(raw.rows)
        content, json_length = self._protocol.write(request, await self._batcher.answer(raw))
        rows = (b"x-lepton-rows", str(raw.rows).encode())
        if json_length is None:
            return 200, content, [(b"content-type", JSON), rows]
        parts = (b"inference-header-content-length", str(json_length).encode())
        return 200, content, [(b"content-type", b"application/octet-stream"), parts, rows]

    def _require_model(self, name: str, version: str | None) -> None:
        if name != self._protocol.name or (version is not None and version != self._protocol.version):
            named = f"{name[:100]}" + (f" version {version[:20]}" if version else "")
            raise NotFound(f"there is no model {named} here; there is {self._protocol.name} {self._protocol.version}".rstrip())


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body; raises `too_large` as soon as it is known to be, without keeping more."""
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY:
        raise _too_large()
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise AppError("the caller went away", code="cancelled")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise _too_large()
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _require(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise AppError(f"this path takes {' or '.join(allowed)}, not {method[:10]}", code="method_not_allowed")


def _require_few(rows: int) -> None:
    if rows > MAX_INSTANCES:
        raise Invalid(f"{rows} instances are more than {MAX_INSTANCES} in one request; send them in parts", code="too_large")


def _too_large() -> Invalid:
    return Invalid(f"the body is larger than {MAX_BODY >> 20} MiB; send fewer instances in one request", code="too_large")


def _json(value: Any, rows: int | None = None) -> Answer:
    headers = [(b"content-type", JSON)]
    if rows is not None:
        headers.append((b"x-lepton-rows", str(rows).encode()))
    return 200, dump(value), headers
