"""HTTP/1.1 to replicas over connections that are kept: bytes out, an answer back. Knows no endpoint.

Its own, since any client that was measured costs more than everything else here together; the parser is httptools.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import cast

import httptools

CONNECT_SECONDS = 2.0
IDLE_SECONDS = 30.0
LARGEST_ANSWER = 64 << 20
_HEAD_BYTES = 64 << 10
# Of a stream whose reader is slow, in hand.
_AHEAD_BYTES = 256 << 10
_STREAMED = (b"text/event-stream",)

Address = tuple[str, int]


class Unanswered(Exception):
    """The replica could not be reached, or was gone before the first byte of its answer: another one may be asked."""

    # Whether it may have read the request.
    sent = True


class Unreached(Unanswered):
    """Nothing was sent."""

    sent = False


class BrokenOff(Exception):
    """The answer had begun."""


@dataclass(slots=True)
class Reply:
    """What a replica said. A stream's bytes come later, by iterating."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = b""
    stream: "Stream | None" = None


class Stream:
    """The bytes of an answer as they come. Raises BrokenOff where they end too soon."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self._error: Exception | None = None
        # Called once when nothing more will come, or is wanted.
        self.on_end: Callable[[], None] = lambda: None

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            while self._parts or not self._over:
                if not self._parts:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
                    continue
                part = self._parts.popleft()
                self._size -= len(part)
                if self._size <= _AHEAD_BYTES:
                    self._connection.go_on()
                yield part
            if self._error:
                raise self._error
        finally:
            self.close()

    def close(self) -> None:
        """Nobody wants the rest."""
        if not self._over:
            self._connection.abort()
            self.end()

    def add(self, part: bytes) -> None:
        """From the connection."""
        self._parts.append(part)
        self._size += len(part)
        if self._size > _AHEAD_BYTES:
            self._connection.hold()
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """From the connection."""
        if not self._over:
            self._over, self._error = True, error
            self.on_end()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: "Pool", address: Address) -> None:
        self._pool, self._address = pool, address
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Reply] | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._begun = False
        self._stream: Stream | None = None
        self.idle_since = 0.0

    async def ask(self, parts: list[bytes]) -> Reply:
        """Raises Unanswered or BrokenOff; a caller that is cancelled takes its request back by closing."""
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        self._transport.writelines(parts)
        try:
            return await answer
        except asyncio.CancelledError:
            self.abort()
            raise

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def abort(self) -> None:
        """The replica hears of it, and stops."""
        self._transport.abort()

    def hold(self) -> None:
        """No more bytes for now."""
        self._transport.pause_reading()

    def go_on(self) -> None:
        """More of them."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods

    def data_received(self, data: bytes) -> None:
        if self._answer is None and self._stream is None:
            # Nothing was asked.
            self.abort()
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(BrokenOff("this is no HTTP/1.1 answer"))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self._address, self)
        self._fail(BrokenOff("it broke off in the middle of its answer") if self._begun else Unanswered("it closed the connection"))

    # What the parser calls

    def on_message_begin(self) -> None:
        self._headers, self._body, self._size = {}, [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._size += len(name) + len(value)
        if self._size > _HEAD_BYTES:
            raise httptools.HttpParserCallbackError

    def on_headers_complete(self) -> None:
        self._size = 0
        status = self._parser.get_status_code()
        if status >= 200 and self._headers.get(b"content-type", b"").startswith(_STREAMED) and self._answer is not None:
            self._stream = Stream(self)
            self._settle(Reply(status, self._headers, stream=self._stream))

    def on_body(self, part: bytes) -> None:
        if self._stream is not None:
            self._stream.add(part)
            return
        self._size += len(part)
        if self._size > LARGEST_ANSWER:
            raise httptools.HttpParserCallbackError
        self._body.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        keep = self._parser.should_keep_alive()
        stream, self._stream, self._begun = self._stream, None, False
        if stream is not None:
            stream.end()
        else:
            self._settle(Reply(status, self._headers, self._body[0] if len(self._body) == 1 else b"".join(self._body)))
        self._headers, self._body = {}, []
        if keep:
            self._pool.keep(self._address, self)
        else:
            self._transport.close()

    def _settle(self, reply: Reply) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.end(error)


class Pool:
    """Connections by address, the last used one first. A lifecycle component."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[Connection]] = {}
        self._all: set[Connection] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to close what has not been used for a while."""
        self._sweeper = asyncio.create_task(self._sweep(), name="connections")

    async def stop(self) -> None:
        """Closes all."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)

    async def ask(self, address: Address, parts: list[bytes]) -> Reply:
        """Sends the parts of a request. Raises Unanswered, also for a kept connection that the other side had just closed; BrokenOff."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return await connection.ask(parts)
        return await (await self._connect(address)).ask(parts)

    def keep(self, address: Address, connection: Connection) -> None:
        """It is free for the next request."""
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(address, []).append(connection)

    def forget(self, address: Address, connection: Connection) -> None:
        """It is closed."""
        self._all.discard(connection)
        idle = self._idle.get(address)
        if idle and connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(address, None)

    async def _connect(self, address: Address) -> Connection:
        host, port = address
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self, address), host, port)
        except (OSError, TimeoutError) as error:
            raise Unreached(str(error) or f"no connection within {CONNECT_SECONDS:g} s") from error
        self._all.add(connection)
        return connection

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 4)
            old = asyncio.get_running_loop().time() - IDLE_SECONDS
            for idle in list(self._idle.values()):
                for connection in [each for each in idle if each.idle_since < old]:
                    connection.abort()
