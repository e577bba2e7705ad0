"""The inference path as a bare ASGI application: which request is an inference, and one from its body to its metered answer.

Knows no model: bytes pass through as they are, both ways.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import quote

import orjson
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from lepton.marketplace.v1 import marketplace_service_pb2
from libs.errors import AppError, Invalid, Transient
from libs.inference import RESPONSES
from libs.rpc import Call, acting, current_call
from libs.telemetry import counter, histogram
from services.gateway.http_server import ON_GONE
from services.gateway.inference.connection import BrokenOff, Reply
from services.gateway.inference.metering import Meter, Use
from services.gateway.inference.openai import ASKED_BYTES, LONGEST_NAME, REPLICA_PATHS, charged, model_of
from services.gateway.inference.quota import PredictionQuota
from services.gateway.inference.router import Asked, NoReplica, Router
from services.gateway.inference.rpc import SECONDS
from services.gateway.messages import query_values, read_body
from services.gateway.operations import TEMPLATE
from services.gateway.peers import Peers
from services.gateway.problems import PROBLEM_JSON, RETRY_AFTER, RPC, encode, from_document
from services.gateway.remembered import Remembered
from services.gateway.settings import Limits

SERVER = {"name": "lepton", "version": "2", "extensions": ["binary_tensor_data"]}
# Whoever asks whether a model is ready wants to know it now.
READY_SECONDS = 2.0
# A subscription that ended is charged no longer than so.
INVOCATION_SECONDS, INVOCATION_STALE_SECONDS = 1.0, 300.0
# A stream ends with its request's time; so much later nobody ends it any more.
STREAM_SLACK_SECONDS = 5.0
_JSON = b"application/json"
_PASSED_BACK = (b"content-type", b"inference-header-content-length", b"retry-after", b"cache-control")
_LONGEST_NUMBER = 12
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?(/ready|/infer|/generate|/generate_stream)?")
_SERVER_SAYS: dict[str, bytes] = {
    "ServerLive": RESPONSES["ServerLive"](live=True).SerializeToString(),
    "ServerReady": RESPONSES["ServerReady"](ready=True).SerializeToString(),
    "ServerMetadata": RESPONSES["ServerMetadata"](**SERVER).SerializeToString(),
}
_predictions = counter("lepton_predictions_total", "Rows that were answered and recorded.")
_duration = histogram("lepton_prediction_duration_seconds", "From a prediction's whole body to its recorded answer.")

T = TypeVar("T")
Charge = Callable[[Use], None]


def is_inference(scope: Scope) -> bool:
    """Whether the inference path answers it; the control plane answers all else."""
    if scope["type"] != "http":
        return False
    path = scope["path"]
    if path.startswith("/v1/endpoints/"):
        return bool(path.endswith("/predict"))
    if path.startswith("/v1/listings/"):
        return bool(path.endswith("/invoke"))
    return bool(path.startswith("/v2/") or path == "/v2" or path in REPLICA_PATHS)


class Inference:
    """An ASGI application and a lifecycle component: quota → replica → quota → meter → answer."""

    def __init__(self, peers: Peers, router: Router, quota: PredictionQuota, meter: Meter, limits: Limits) -> None:
        self._router, self._quota, self._meter, self._limits = router, quota, meter, limits
        self._marketplace = peers.marketplace
        self._invocations: Remembered[tuple[str, str], marketplace_service_pb2.ResolveInvocationResponse] = Remembered(
            self._resolve_invocation, fresh_seconds=INVOCATION_SECONDS, stale_seconds=INVOCATION_STALE_SECONDS
        )

    async def start(self) -> None:
        """Opens what it stands on."""
        for part in (self._router, self._quota, self._meter):
            await part.start()

    async def stop(self) -> None:
        """Tells what was answered, then gives back what was not used."""
        for part in (self._meter, self._quota, self._router):
            await part.stop()
        self._invocations.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in REPLICA_PATHS:
            scope[TEMPLATE] = path
            _require(scope, "POST")
            await self._speak(REPLICA_PATHS[path], scope, receive, send)
        elif path.startswith(RPC):
            await self._call(path, scope, receive, send)
        elif path.startswith("/v1/"):
            noun, name, verb = path[4:].split("/", 2)
            scope[TEMPLATE] = f"/v1/{noun}/{{{'name' if verb == 'predict' else 'slug'}}}/{verb}"
            if "/" in verb or not name:
                raise AppError(f"there is nothing at {path[:200]}; /docs lists what there is", code="not_found")
            _require(scope, "POST")
            if scope["query_string"]:
                query_values(Request(scope), {})
            await (self._predict if verb == "predict" else self._invoke)(name, scope, receive, send)
        elif match := _MODEL.fullmatch(path):
            model, action = match.groups()
            scope[TEMPLATE] = f"/v2/models/{{model}}{action or ''}"
            if action == "/infer":
                _require(scope, "POST")
                await self._infer(model, await self._body(scope, receive), scope, send)
            elif action in ("/generate", "/generate_stream"):
                _require(scope, "POST")
                await self._infer(model, await self._text(scope, receive), scope, send)
            else:
                _require(scope, "GET", "HEAD")
                await self._look(model, action == "/ready", scope, send)
        else:
            await _about_itself(scope, send)

    async def _predict(self, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Asked("POST", "/predict", _headers(scope), await self._body(scope, receive))
        await self._answer(scope, send, current_call().identity.workspace, endpoint, asked)

    async def _infer(self, endpoint: str, body: bytes, scope: Scope, send: Send) -> None:
        asked = Asked("POST", quote(scope["path"], safe="/"), _headers(scope), body)
        await self._answer(scope, send, current_call().identity.workspace, endpoint, asked)

    async def _speak(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """As OpenAI has it: the endpoint is named by the body."""
        body = await self._text(scope, receive)
        asked = Asked("POST", path, _headers(scope), body)
        await self._answer(scope, send, current_call().identity.workspace, model_of(body), asked)

    async def _invoke(self, slug: str, scope: Scope, receive: Receive, send: Send) -> None:
        """By the endpoint behind a listing that the caller's workspace subscribes to."""
        found = await self._invocations.get((current_call().identity.workspace, slug))

        def charge(use: Use) -> None:
            self._meter.invoked(found.subscription, use)

        asked = Asked("POST", "/predict", _headers(scope), await self._body(scope, receive))
        await self._answer(scope, send, found.publisher, found.endpoint, asked, charge)

    async def _look(self, model: str, whether_ready: bool, scope: Scope, send: Send) -> None:
        """What a replica says of its model, or whether one does."""
        asked = Asked("GET", quote(scope["path"], safe="/"), _headers(scope))

        def unready(error: AppError) -> Reply:
            return Reply(400, {b"content-type": _JSON}, encode({"name": model, "ready": False, "error": error.detail}))

        await _send(scope, send, await self._ask(model, asked, scope, unready if whether_ready else None))

    async def _ask(self, model: str, asked: Asked, scope: Scope, unready: Callable[[AppError], Reply] | None) -> Reply:
        """A replica's answer about its model. Where `unready` is there it is asked soon, and answers for a model that has none."""
        workspace, seconds = current_call().identity.workspace, scope.get(SECONDS)
        if unready:
            seconds = READY_SECONDS if seconds is None else min(READY_SECONDS, seconds)
        try:
            return await self._router.send(workspace, model, asked, seconds=seconds, current=True)
        except (Transient, NoReplica) as error:
            if unready is None:
                raise
            return unready(error)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(Request(scope, receive), self._limits.predict_bytes, self._limits.body_seconds)

    async def _text(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(Request(scope, receive), min(ASKED_BYTES, self._limits.predict_bytes), self._limits.body_seconds)

    async def _call(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Over gRPC, where the endpoint's name is in the message."""
        scope[TEMPLATE] = path
        method = path.removeprefix(RPC)
        body = await self._body(scope, receive)
        if method in _SERVER_SAYS:
            await _send(scope, send, Reply(200, {}, _SERVER_SAYS[method]))
            return
        endpoint, asked = _name_in(body), Asked("POST", path, {}, body)
        if method == "ModelInfer":
            await self._answer(scope, send, current_call().identity.workspace, endpoint, asked)
            return

        def unready(_: AppError) -> Reply:
            return Reply(200, {}, RESPONSES[method](ready=False).SerializeToString())

        reply = await self._ask(endpoint, asked, scope, unready if method == "ModelReady" else None)
        _require_answer(reply)
        await _send(scope, send, reply)

    async def _answer(self, scope: Scope, send: Send, owner: str, endpoint: str, asked: Asked, charge: Charge | None = None) -> None:
        """`charge`: another than for a workspace's own endpoint."""
        payer = current_call().identity.workspace
        charge = charge or (lambda use: self._meter.predicted(owner, endpoint, use))
        started = time.perf_counter()
        await self._quota.admit(payer)
        reply = await _unless_gone(self._router.send(owner, endpoint, asked, seconds=scope.get(SECONDS)), scope)
        _require_answer(reply)
        try:
            if rows := _rows(reply):
                await self._quota.take(payer, rows)
                charge(Use(rows, _number(reply, b"x-lepton-tokens-in"), _number(reply, b"x-lepton-tokens-out")))
                _predictions.add(rows)
                _duration.record(time.perf_counter() - started)
            if reply.stream is None:
                await _send(scope, send, reply)
            else:
                parts = (
                    charged(reply.stream, charge, by_openai=scope["path"] in REPLICA_PATHS)
                    if b"x-lepton-tokens-in" in reply.headers
                    else reply.stream.__aiter__()
                )
                await _unless_gone(self._stream(scope, send, reply, parts), scope)
        finally:
            if reply.stream is not None:
                reply.stream.close()

    async def _stream(self, scope: Scope, send: Send, reply: Reply, parts: AsyncGenerator[bytes, None]) -> None:
        """Also for whoever reads too slowly the time is over at last."""
        await send({"type": "http.response.start", "status": reply.status, "headers": _passed_back(reply)})
        try:
            async with asyncio.timeout(self._router.seconds + STREAM_SLACK_SECONDS), aclosing(parts):
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except BrokenOff as error:
            raise AppError("the replica broke off in the middle of its answer", code="upstream_failed") from error
        except TimeoutError as error:
            raise AppError("the stream did not end in its time", code="deadline_exceeded") from error
        await send({"type": "http.response.body", "body": b""})

    async def _resolve_invocation(self, key: tuple[str, str]) -> marketplace_service_pb2.ResolveInvocationResponse:
        buyer, slug = key
        request = marketplace_service_pb2.ResolveInvocationRequest(buyer=buyer, slug=slug)
        with acting(Call()):
            answer: marketplace_service_pb2.ResolveInvocationResponse = await self._marketplace.ResolveInvocation(request)
        return answer


async def _about_itself(scope: Scope, send: Send) -> None:
    """The server's part of the protocol; its clients look at the status, some at one of the words."""
    path = scope["path"]
    known = {"/v2": SERVER, "/v2/health/live": {"live": True, "ready": True}, "/v2/health/ready": {"live": True, "ready": True}}
    if path not in known:
        raise AppError(f"there is nothing at {path[:200]}; /docs lists what there is", code="not_found")
    scope[TEMPLATE] = path
    _require(scope, "GET", "HEAD")
    await _send(scope, send, Reply(200, {b"content-type": _JSON}, orjson.dumps(known[path])))


async def _unless_gone(answer: Awaitable[T], scope: Scope) -> T:
    """A caller that goes away takes its request back: the replica need not answer it."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    scope[ON_GONE] = leave
    try:
        return await answer
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        del scope[ON_GONE]


async def _send(scope: Scope, send: Send, reply: Reply) -> None:
    headers = [*_passed_back(reply), (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})


def _passed_back(reply: Reply) -> list[tuple[bytes, bytes]]:
    return [(name, reply.headers[name]) for name in _PASSED_BACK if name in reply.headers]


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _require(scope: Scope, *allowed: str) -> None:
    if scope["method"] not in allowed:
        words = f"{scope['path'][:200]} does not take {scope['method'][:20]}; it takes {', '.join(allowed)}"
        raise AppError(words, code="method_not_allowed")


def _rows(reply: Reply) -> int:
    """To be paid for; none where the replica refused."""
    if not 200 <= reply.status < 300:
        return 0
    # Whoever answers without counting has answered something.
    return _number(reply, b"x-lepton-rows", 1)


def _number(reply: Reply, name: bytes, otherwise: int = 0) -> int:
    value = reply.headers.get(name, b"")
    return int(value) if value.isdigit() and len(value) <= _LONGEST_NUMBER else otherwise


def _require_answer(reply: Reply) -> None:
    """Raises a replica's problem, so that it gets our type, instance and trace id."""
    if not reply.headers.get(b"content-type", b"").startswith(PROBLEM_JSON.encode()):
        return
    try:
        document = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        document = None
    error = from_document(document, f"the replica answered {reply.status}")
    if seconds := _number(reply, b"retry-after"):
        error.meta[RETRY_AFTER] = seconds
    raise error


def _name_in(message: bytes) -> str:
    """The endpoint's name: field 1, as in a StringValue, of all messages that have one. What else is there stays as it is."""
    try:
        name = StringValue.FromString(message).value
    except DecodeError:
        raise Invalid("this is no message of the inference protocol") from None
    if not 0 < len(name) <= LONGEST_NAME:
        raise Invalid("the message does not name a model; its name is the endpoint's")
    return str(name)


def split(inference: ASGIApp, otherwise: ASGIApp, draining: asyncio.Event) -> ASGIApp:
    """Each request to whom it is for. This process's own health is not the control plane's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if is_inference(scope):
            await inference(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await otherwise(scope, receive, send)
        elif draining.is_set() and scope["path"] in ("/healthz", "/readyz"):
            await _send(scope, send, Reply(503, {b"content-type": _JSON}, b'{"status":"draining"}'))
        elif scope["path"] == "/healthz":
            await _send(scope, send, Reply(200, {b"content-type": _JSON}, b'{"status":"ok"}'))
        else:
            await otherwise(scope, receive, send)

    return app
