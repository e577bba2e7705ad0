"""uvicorn as a component that can share a loop with others, with bounds where it has none.

Knows bytes and connections; the application answers requests.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.settings import GatewaySettings, Limits

# Where a request's scope says what to do when its caller goes away.
ON_GONE = "lepton.on_gone"
# Where it says that the whole body has come, so that nobody need watch over it.
WHOLE = "lepton.whole"
_REASONS = {
    400: ("invalid_request", "Bad Request", "this is not a valid HTTP/1.1 request"),
    431: ("too_large", "Request Header Fields Too Large", "the request's line and headers are too large or too many"),
}


class HttpServer:
    """Listens on host:port, or on a unix socket; port 0 takes a free one, which `address` names after start().

    At its stop it sets `draining` and goes on for `drain_seconds`, asking clients to connect elsewhere; then it sets `closing` and ends.
    """

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, *, draining: asyncio.Event, closing: asyncio.Event, grace_seconds: int = 5
    ) -> None:
        self.address = f"unix:{settings.socket}" if settings.socket else f"http://{settings.host}:{settings.port}"
        self._app, self._settings = app, settings
        self._draining, self._closing = draining, closing
        self._grace_seconds = grace_seconds
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError in words when the port is taken."""
        listener = self._listen()
        config = uvicorn.Config(
            self._app,
            http=_protocol(self._settings.limits, self._settings.problem_base),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(self._settings.limits.idle_seconds),
            timeout_graceful_shutdown=self._grace_seconds,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the HTTP server ended while it started")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Lets clients find another, answers what has been asked, ends streams, then closes."""
        self._draining.set()
        if self._server is not None and self._task is not None:
            # The first are read once a second, to make the second.
            for headers in (self._server.config.encoded_headers, self._server.server_state.default_headers):
                headers.append((b"connection", b"close"))
            await asyncio.sleep(self._settings.drain_seconds)
            self._closing.set()
            self._server.should_exit = True
            await self._task
            self._server = self._task = None

    def _listen(self) -> socket.socket:
        host, port, path = self._settings.host, self._settings.port, self._settings.socket
        if path:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            Path(path).unlink(missing_ok=True)
            listener.bind(path)
            return listener
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), backlog=2048, family=family, reuse_port=self._settings.share_port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                words = f"port {port} of {host} is taken by another program; choose another one with LEPTON_GATEWAY_PORT"
                raise OSError(error.errno, words) from error
            raise
        host, port = listener.getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return listener


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to one of its components."""
        yield


class _HeadTooLarge(Exception):
    pass


class Together:
    """A transport that sends at once what is written within one turn of the loop: an answer's head and its body, mostly."""

    __slots__ = ("_parts", "_size", "_soon", "_transport")

    def __init__(self, transport: Any, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport, self._soon = transport, soon
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, part: bytes) -> None:
        if not self._parts:
            self._soon(self._send)
        self._parts.append(part)
        self._size += len(part)
        if self._size > HIGH_WATER_LIMIT:
            # Whoever writes so much hears only so that it is too much.
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts, self._size = [], 0


def _protocol(limits: Limits, problem_base: str) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with bounds on connections, on the size of heads and on the time that they take.

    httptools has none: a client could send headers for ever, or connect and say nothing.
    """

    class Bounded(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _bytes_left = 0
        _headers_left = 0
        _receiving = False
        _closes = False
        _in_head = False
        _head_bytes = 0
        _refusal = 400

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.transport = cast(asyncio.Transport, Together(transport, self.loop.call_soon))
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            # asyncio does so only for sockets that name their protocol; else a body waits 40 ms for its head's acknowledgement.
            if transport.get_extra_info("socket").family != socket.AF_UNIX:
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)
            if self.cycle is not None and (leave := cast(Callable[[], None] | None, self.cycle.scope.get(ON_GONE))):
                leave()

        def data_received(self, data: bytes) -> None:
            if self._timer is None and not self._receiving and (self.cycle is None or self.cycle.response_complete):
                self._arm()
            super().data_received(data)
            if self._in_head:
                # One header without an end is not reported by the parser, only kept.
                self._head_bytes += len(data)
                if self._head_bytes > limits.header_bytes and not self.transport.is_closing():
                    self._refusal = 431
                    self.send_400_response("")

        def on_message_begin(self) -> None:
            self._in_head = True
            self._head_bytes = 0
            self._bytes_left = limits.header_bytes
            self._headers_left = limits.header_count
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._spend(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._headers_left -= 1
            self._spend(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._disarm()
            self._in_head = False
            self._receiving = True
            super().on_headers_complete()
            if self.cycle is not None:
                # uvicorn would close right after an answer, and one that came before the whole body be lost with the reset.
                self._closes, self.cycle.keep_alive = not self.cycle.keep_alive, True

        def on_message_complete(self) -> None:
            self._receiving = False
            cast(dict[str, Any], self.scope)[WHOLE] = True
            super().on_message_complete()
            if self.cycle is not None and self.cycle.response_complete:
                # The rest of a body that nobody wanted has passed: from here on the connection is idle.
                self._disarm()
                self._arm(0 if self._closes else limits.idle_seconds)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._receiving and not self.transport.is_closing():
                # Answered before the body was there: it may still arrive, and is thrown away, for a while.
                self._unset_keepalive_if_required()
                self._arm()
            elif self._closes and self.cycle is not None and self.cycle.response_complete:
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
                self.transport.abort()
                return
            code, phrase, detail = _REASONS[self._refusal]
            problem = {
                "type": f"{problem_base.rstrip('/')}/{code}",
                "title": phrase,
                "status": self._refusal,
                "detail": detail,
                "code": code,
                "errors": [],
                "retryable": False,
            }
            body = orjson.dumps(problem)
            head = f"HTTP/1.1 {self._refusal} {phrase}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

        def _spend(self, size: int) -> None:
            self._bytes_left -= size
            if self._bytes_left < 0 or self._headers_left < 0:
                self._refusal = 431
                raise _HeadTooLarge

        def _arm(self, seconds: float = limits.head_seconds) -> None:
            self._disarm()
            self._timer = self.loop.call_later(seconds, self._give_up)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Bounded
