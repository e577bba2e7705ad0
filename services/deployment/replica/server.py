"""HTTP/1.1 over sockets for one application: heads, bodies, time-outs, and the end. Knows no path and no model.

Its own, since what a replica needs is between the parser and the loop: refusals before a body is read, work that is taken back when its
caller goes away, no task for each request. The parser is httptools.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol as Interface
from typing import cast

import httptools

from libs.errors import AppError, Invalid, Transient
from services.deployment.replica.app import MAX_BODY, Held, require_size
from services.deployment.replica.replies import Reply, Request, failed
from services.deployment.replica.texts import Stream

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
_CLOSE = b"connection: close\r\n"
# A refused body of so many bytes is read to its end, and the connection goes on.
_SMALL_BODY = 64 << 10
# A caller that has shut its side down is asked twice whether it still reads; an interim answer is one that clients skip.
_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """Of all connections of one server. A body has to come with `body_bytes_per_second` on average once `body_seconds` are over."""

    connections: int = 2048
    pipelined: int = 64
    head_bytes: int = 16 << 10
    headers: int = 100
    buffered_bytes: int = 256 << 20
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    body_bytes_per_second: int = 64 << 10
    idle_seconds: float = 75.0  # the router keeps its connections
    write_seconds: float = 30.0
    linger_seconds: float = 2.0


class Application(Interface):
    """What is served."""

    draining: bool

    def refuse(self, request: Request) -> Reply | None: ...
    def answer(self, request: Request, answer: Callable[[Reply], None]) -> Held | None: ...
    def withdraw(self, held: Held) -> None: ...


class Server:
    """Listens until it is drained."""

    def __init__(self, application: Application, limits: Limits = Limits()) -> None:
        self.application, self.limits = application, limits
        self.connections: set[Connection] = set()
        self.buffered = 0
        self._listening: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self), sock=listening, backlog=2048)
        self._watch = loop.create_task(self._look_after())

    async def drain(self, seconds: float) -> None:
        """Takes no new connection or request, and returns when what is in hand is answered, or the time is over."""
        assert self._listening and self._watch
        self.application.draining = True
        self._listening.close()
        end = asyncio.get_running_loop().time() + seconds
        while any(connection.speaks for connection in self.connections) and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._watch.cancel()
        for connection in list(self.connections):
            connection.end()
        await asyncio.sleep(0)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.limits.head_seconds / 4, self.limits.body_seconds / 4))
            now = asyncio.get_running_loop().time()
            for connection in list(self.connections):
                connection.check(now)


class Exchange:
    """A request and, later, its reply's bytes; of a stream the head's, and none once that was sent."""

    __slots__ = ("head", "keep", "reply", "request", "stream", "waiting")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.waiting: Held | None = None
        self.reply: bytes | None = None
        self.stream: Stream | None = None
        self.keep = True
        self.head = False

    @property
    def streams(self) -> bool:
        """Its answer has begun and not ended: nothing may come between."""
        return self.stream is not None and not self.reply


class Connection(asyncio.Protocol):
    """One caller. Its states: idle, a head coming, a body coming, answers in hand, lingering until what was refused stopped coming."""

    def __init__(self, server: Server) -> None:
        self._server, self._application = server, server.application
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._exchanges: deque[Exchange] = deque()
        self._request: Request | None = None  # whose head or body is coming
        self._refused: Reply | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._head_bytes = 0
        self._headers = 0
        self._in_head = False
        self._lingers = False
        self._ended = False  # the caller has shut its side down
        self._since = self._loop.time()
        self._stuck_since: float | None = None

    @property
    def speaks(self) -> bool:
        """Whether a request is coming or being answered, or an answer has not left."""
        return not self._lingers and (self._request is not None or bool(self._exchanges) or self._transport.get_write_buffer_size() > 0)

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods
        self._server.connections.add(self)
        if len(self._server.connections) > self._server.limits.connections:
            self._refuse_all(Transient("there are too many connections; use those that there are", meta={"retry_after": 1}))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._forget_body()
        for exchange in self._exchanges:
            if exchange.waiting is not None:
                self._application.withdraw(exchange.waiting)
        self._exchanges.clear()
        self._request = None

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._in_head and self._head_bytes > self._server.limits.head_bytes:
                raise httptools.HttpParserCallbackError
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse_all(cause if isinstance(cause, AppError) else _long_head(self._server.limits))
        except httptools.HttpParserError:
            self._refuse_all(Invalid("this is not HTTP/1.1"))

    def eof_received(self) -> bool:
        self._ended = True
        if self._request is not None or not self._exchanges or self._lingers:
            return False
        self._probe()
        self._loop.call_later(_PROBE_SECONDS, self._probe)
        return True

    def pause_writing(self) -> None:
        self._stuck_since = self._loop.time()
        if not self._ended:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stuck_since = None
        if not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()
        self._send()

    # What the parser calls

    def on_message_begin(self) -> None:
        if len(self._exchanges) >= self._server.limits.pipelined:
            raise Transient("there are too many requests at once on one connection", code="rate_limited", meta={"retry_after": 1})
        self._request = Request()
        self._in_head, self._headers, self._since = True, 0, self._loop.time()

    def on_url(self, url: bytes) -> None:
        assert self._request
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._request
        self._request.headers[name.lower()] = value
        self._headers += 1
        self._size += len(name) + len(value)
        if self._headers > self._server.limits.headers or self._size > self._server.limits.head_bytes:
            raise _long_head(self._server.limits)

    def on_headers_complete(self) -> None:
        request = self._request
        assert request
        self._in_head, self._size = False, 0
        request.method, request.received = self._parser.get_method(), self._loop.time()
        if len(request.path) > self._server.limits.head_bytes:
            raise _long_head(self._server.limits)
        if self._parser.should_upgrade():
            raise Invalid("the replica speaks HTTP/1.1 and nothing else")
        self._refused = self._application.refuse(request) or self._refuse_crowd(request)
        length = request.headers.get(b"content-length", b"")
        if self._refused and (int(length[:20] or 0) > _SMALL_BODY or b"transfer-encoding" in request.headers):
            self._end_with(self._refused)
        elif not self._refused and request.headers.get(b"expect", b"").lower() == b"100-continue" and not self._exchanges:
            self._transport.write(_PROBE)

    def on_body(self, part: bytes) -> None:
        if self._lingers or self._refused:
            return
        assert self._request
        self._size += len(part)
        self._server.buffered += len(part)
        self._body.append(part)
        if self._size > MAX_BODY:
            try:
                require_size(self._size)
            except AppError as error:
                self._end_with(failed(self._request, error))

    def on_message_complete(self) -> None:
        if self._lingers or self._transport.is_closing():
            return
        request, refused = self._request, self._refused
        assert request
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._forget_body()
        self._request, self._refused, self._head_bytes = None, None, 0
        self._since = self._loop.time()
        exchange = Exchange(request)
        exchange.keep, exchange.head = self._parser.should_keep_alive(), request.method == b"HEAD"
        self._exchanges.append(exchange)

        def answer(reply: Reply) -> None:
            exchange.reply, exchange.stream = self._render(reply, exchange), reply.stream
            if reply.stream is None:
                exchange.waiting = None
            else:
                reply.stream.on_more = self._send
            self._send()

        if refused:
            answer(refused)
        else:
            waiting = self._application.answer(request, answer)
            exchange.waiting = waiting if exchange.reply is None else None
            request.body = b""  # rows now, and counted as such

    # What these do

    def check(self, now: float) -> None:
        """Ends what is too slow."""
        limits, passed = self._server.limits, now - self._since
        if self._stuck_since is not None:
            if now - self._stuck_since > limits.write_seconds:
                self._transport.abort()
        elif self._lingers:
            if passed > limits.linger_seconds:
                self._transport.abort()
        elif self._in_head:
            if passed > limits.head_seconds:
                self._refuse_all(_slow("head", limits.head_seconds))
        elif self._request is not None:
            if passed > limits.body_seconds + self._size / limits.body_bytes_per_second:
                self._refuse_all(_slow("body", passed))
        elif not self._exchanges and passed > limits.idle_seconds:
            self._transport.close()

    def end(self) -> None:
        """At the server's end."""
        self._transport.close()

    def _probe(self) -> None:
        if self._exchanges and not self._exchanges[0].streams and not self._transport.is_closing():
            self._transport.write(_PROBE)

    def _refuse_crowd(self, request: Request) -> Reply | None:
        """Bodies in hand are bounded, all connections taken together."""
        if self._server.buffered <= self._server.limits.buffered_bytes:
            return None
        crowd = Transient("too many large requests are being read; try again", code="rate_limited", meta={"retry_after": 1})
        return failed(request, crowd)

    def _refuse_all(self, error: AppError) -> None:
        """What comes cannot be understood, or not be waited for: nothing further is read."""
        if not self._transport.is_closing() and not self._lingers:
            self._end_with(failed(self._request or Request(), error))

    def _end_with(self, reply: Reply) -> None:
        """A last reply, behind those in hand. What still comes is thrown away for a moment: closing at once would take the reply back."""
        self._forget_body()
        exchange = Exchange(self._request or Request())
        exchange.keep = False
        self._request, self._in_head, self._lingers, self._since = None, False, True, self._loop.time()
        self._exchanges.append(exchange)
        exchange.reply = self._render(reply, exchange)
        self._send()

    def _render(self, reply: Reply, exchange: Exchange) -> bytes:
        close = b"" if exchange.keep and not self._application.draining else _CLOSE
        if reply.stream is not None:
            return b"%s%s%stransfer-encoding: chunked\r\n\r\n" % (_LINES[reply.status], reply.headers, close)
        body = b"" if exchange.head else reply.body
        return b"%s%s%scontent-length: %d\r\n\r\n%s" % (_LINES[reply.status], reply.headers, close, len(reply.body), body)

    def _send(self) -> None:
        """The replies that are there, in the order of the requests."""
        if self._transport.is_closing():
            return
        exchanges, keep = self._exchanges, True
        while exchanges and keep and exchanges[0].reply is not None:
            if not self._write(exchanges[0]):
                return
            exchange = exchanges.popleft()
            keep = exchange.keep and not self._application.draining
        if not exchanges:
            self._since = self._loop.time()
        if not keep and self._lingers and not self._ended:
            self._transport.write_eof()
        elif not keep or (self._ended and not exchanges):
            self._transport.close()

    def _write(self, exchange: Exchange) -> bool:
        """What there is and the caller takes; whether that was all."""
        if exchange.reply:
            self._transport.write(exchange.reply)
            exchange.reply = b""
        if (stream := exchange.stream) is None:
            return True
        while self._stuck_since is None and (part := stream.take()) is not None:
            self._transport.write(b"%x\r\n%s\r\n" % (len(part), part))
        if stream.left:
            return False
        self._transport.write(b"0\r\n\r\n")
        return True

    def _forget_body(self) -> None:
        self._server.buffered -= sum(map(len, self._body)) if len(self._body) > 1 else self._size if self._body else 0
        self._body, self._size = [], 0


def _long_head(limits: Limits) -> AppError:
    message = f"the head of a request may have {limits.head_bytes} bytes and {limits.headers} headers, and not more"
    return Invalid(message, code="too_large")


def _slow(what: str, seconds: float) -> AppError:
    return Invalid(f"the request's {what} did not come within {seconds:.0f} s", code="invalid_request")
