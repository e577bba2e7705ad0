"""The inference protocol over gRPC, as ASGI: a call is a POST to its own path, and goes the way of any other request; of a stream
each message does.

Knows statuses and metadata; no message.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import orjson
from starlette.types import ASGIApp, Message, Receive, Scope

from libs.errors import AppError
from libs.inference import REQUESTS
from services.gateway.http_server import ON_GONE
from services.gateway.inference.streams import STREAM, Turn, failed
from services.gateway.problems import RPC, RPC_STATUS
from services.gateway.settings import GatewaySettings, Limits

# Where a call's scope says how many seconds its caller waits.
SECONDS = "lepton.seconds"
# At once on one connection; a client's further calls wait on its side.
_STREAMS = 256
_GRACE_SECONDS = 15.0
# Where no layer has named it; 0: nothing was said, since the caller is gone.
_STATUSES = {0: "CANCELLED", 200: ""}
# These end a stream: the next message would be refused likewise.
_NO_CALLER = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}
# Old connections are begun anew, perhaps with a gateway that was not there before.
_AGE_SECONDS = 300.0

Context = Any  # grpc.aio.ServicerContext, which has no types
Requests = AsyncIterator[bytes]


class RpcServer:
    """A lifecycle component. Listens at `host` and `grpc_port`; port 0 takes a free one, which `address` names after start()."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, closing: asyncio.Event) -> None:
        self.address = _address(settings.host, settings.grpc_port)
        self._app, self._settings, self._closing = app, settings, closing
        self._server: grpc.aio.Server | None = None
        self._ending: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Raises OSError in words when the port is taken."""
        limits = self._settings.limits
        self._server = grpc.aio.server(options=_options(limits, self._settings.share_port), maximum_concurrent_rpcs=limits.connections)
        # By streams, though there is one message in each: who calls is known before it is read.
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._handler(RPC + name)) for name in REQUESTS}
        handlers[STREAM] = grpc.stream_stream_rpc_method_handler(self._stream)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(RPC.strip("/"), handlers),))
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            words = f"{self.address} is taken by another program; choose another port with LEPTON_GATEWAY_GRPC_PORT"
            raise OSError(words) from error
        await self._server.start()
        self.address = _address(self._settings.host, port)
        self._ending = asyncio.create_task(self._end(self._server), name="grpc")

    async def stop(self) -> None:
        """Answers what has been asked, then ends."""
        self._closing.set()
        if self._ending is not None:
            await self._ending

    async def _end(self, server: grpc.aio.Server) -> None:
        """Together with HTTP, once clients have had the time to go elsewhere."""
        await self._closing.wait()
        await server.stop(_GRACE_SECONDS)
        if self._answering:
            await asyncio.wait(self._answering)

    def _handler(self, path: str) -> Callable[[Requests, Context], Awaitable[bytes]]:
        async def handle(requests: Requests, context: Context) -> bytes:
            answer = _Answer()
            await self._answer(_scope(path, context), _receive(requests), answer)
            body, trailers = b"".join(answer.parts), {name.decode(): value.decode("latin-1") for name, value in answer.headers}
            status = trailers.pop(RPC_STATUS, _STATUSES.get(answer.status, "UNKNOWN"))
            metadata = tuple((name, value) for name, value in trailers.items() if not name.startswith("content-"))
            if status:
                await context.abort(grpc.StatusCode[status], body.decode(errors="replace"), metadata)  # raises
            context.set_trailing_metadata(metadata)
            return body

        return handle

    async def _stream(self, requests: Requests, context: Context) -> None:
        """One message after the other: who reads slowly is asked for the next one later. What is wrong with one ends no stream."""
        async for message in requests:
            try:
                turn = Turn(message)
            except AppError as error:
                await context.write(failed(error.detail))
                continue
            answer = _Streamed(turn, context.write)
            try:
                await self._answer(_scope(turn.path, context), _receive(_one(turn.body)), answer)
            except AppError as error:
                # Its answer had begun.
                answer.words = error.detail
            if refused := _NO_CALLER.get(answer.status):
                await context.abort(refused, answer.words)  # raises
            if answer.words:
                await context.write(failed(answer.words, turn.id))
            else:
                for response in turn.end():
                    await context.write(response)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer | _Streamed") -> None:
        """A caller that goes away is told of as HTTP's are: cancelled just anywhere, what is reserved or written would be lost half-way."""
        task = asyncio.ensure_future(self._app(scope, receive, answer.send))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if leave := scope.get(ON_GONE):
                leave()
            raise


class _Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.parts.append(message.get("body", b""))


class _Streamed:
    """Says each part of a turn's answer as it comes; of one that is refused it keeps the words."""

    def __init__(self, turn: Turn, write: Callable[[bytes], Awaitable[None]]) -> None:
        self.status, self.words = 0, ""
        self._turn, self._write = turn, write

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not (part := message.get("body", b"")):
            return
        elif self.status != 200:
            self.words = _said(part)
        else:
            for response in self._turn.read(part):
                await self._write(response)


def _said(part: bytes) -> str:
    """A refusal's words, in either form."""
    return str(orjson.loads(part)["error"]) if part.startswith(b'{"error"') else part.decode(errors="replace")


def _scope(path: str, context: Context) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), _bytes(value)) for name, value in context.invocation_metadata() or ()],
        SECONDS: context.time_remaining(),
    }


async def _one(body: bytes) -> Requests:
    yield body


def _receive(requests: Requests) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(requests, b""), "more_body": False}

    return receive


def _options(limits: Limits, share_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.predict_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        # None but "identity": a small message that becomes a large one would be unpacked before it is measured.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.server_handshake_timeout_ms", int(limits.head_seconds * 1000)),
        # A client whose machine is gone holds nothing for ever.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_connection_idle_ms", int(_AGE_SECONDS * 1000)),
        ("grpc.max_connection_age_ms", int(_AGE_SECONDS * 1000)),
    ]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
