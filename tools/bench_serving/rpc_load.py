"""Calls over gRPC from one core, at far less than a library's cost: frames are made once, and of answers only the frames' heads are read.

`python -m tools.bench_serving.rpc_load PORT PATH SECONDS SIZE [NAME VALUE]...`: the message on the standard input, the metadata in pairs;
SIZE is that of a right answer's message. Says calls, seconds, p50 and p99 in milliseconds, and failures.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import cast

import uvloop

# In all as many calls in hand as wrk has connections.
CONNECTIONS, STREAMS = 4, 8
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK = 1, 1
_END_ALL = 5  # END_STREAM and END_HEADERS
_METHOD_POST, _SCHEME_HTTP = b"\x83", b"\x86"  # of HPACK's static table
_FIRST_OWN = 62
_WIDE = 1 << 30


class Connection(asyncio.Protocol):
    """Keeps `STREAMS` calls in hand until `until`; RFC 9113 and RFC 7541."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]], message: bytes, size: int, until: float) -> None:
        # Named in full once, and then by their places in the peer's table, as libraries do it.
        self._first = _METHOD_POST + _SCHEME_HTTP + b"".join(b"\x40" + _text(name) + _text(value) for name, value in headers)
        places = range(_FIRST_OWN + len(headers) - 1, _FIRST_OWN - 1, -1)
        self._again = _METHOD_POST + _SCHEME_HTTP + bytes(0x80 | place for place in places)
        self._message = b"\0" + len(message).to_bytes(4, "big") + message
        self._expected, self._until = 5 + size, until
        self._next, self._credit, self._buffer = 1, 65_535, bytearray()
        self._in_hand: dict[int, list[float]] = {}
        self.took: list[float] = []
        self.failures = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = b"\0\4" + _WIDE.to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
        window = _frame(_WINDOW, 0, 0, _WIDE.to_bytes(4, "big"))
        self._transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings) + window)
        self._fill()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.failures += max(1, len(self._in_hand))
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= 9 and len(buffer) - at >= 9 + (length := int.from_bytes(buffer[at : at + 3], "big")):
            kind, flags, stream = buffer[at + 3], buffer[at + 4], int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._frame(kind, flags, stream, length, buffer, at + 9)
            at += 9 + length
        del buffer[:at]
        self._fill()

    def _frame(self, kind: int, flags: int, stream: int, length: int, buffer: bytearray, at: int) -> None:
        if kind == _DATA:
            self._in_hand[stream][1] += length
        elif kind in (_HEADERS, _RESET):
            if kind == _RESET or flags & _END_STREAM:
                begun, size = self._in_hand.pop(stream)
                self.took.append(time.perf_counter() - begun)
                self.failures += size != self._expected
        elif kind == _WINDOW:
            self._credit += 0 if stream else int.from_bytes(buffer[at : at + 4], "big")
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, bytes(buffer[at : at + length]) if kind == _PING else b""))
        elif kind == _GOAWAY:
            self._transport.close()

    def _fill(self) -> None:
        frames, now = [], time.perf_counter()
        if now < self._until:
            while len(self._in_hand) < STREAMS and self._credit >= len(self._message):
                headers = self._first if self._next == 1 else self._again
                frames += [_frame(_HEADERS, 4, self._next, headers), _frame(_DATA, _END_STREAM, self._next, self._message)]
                self._in_hand[self._next] = [now, 0]
                self._next, self._credit = self._next + 2, self._credit - len(self._message)
            self._transport.write(b"".join(frames))
        elif not self._in_hand and not self.ended.done():
            self.ended.set_result(None)


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


async def _load(port: int, path: str, seconds: float, size: int, metadata: list[str]) -> str:
    headers = [(":path", path), (":authority", f"127.0.0.1:{port}"), ("te", "trailers"), ("content-type", "application/grpc")]
    headers += zip(metadata[::2], metadata[1::2], strict=True)
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    message, loop, begun = sys.stdin.buffer.read(), asyncio.get_running_loop(), time.perf_counter()
    connections = []
    for _ in range(CONNECTIONS):
        _, connection = await loop.create_connection(lambda: Connection(encoded, message, size, begun + seconds), "127.0.0.1", port)
        connections.append(connection)
    async with asyncio.timeout(seconds + 10):
        await asyncio.gather(*(connection.ended for connection in connections))
    elapsed = time.perf_counter() - begun
    took = [took for connection in connections for took in connection.took]
    centiles = statistics.quantiles(took, n=100)
    failures = sum(connection.failures for connection in connections)
    return f"{len(took)} {elapsed} {centiles[49] * 1e3} {centiles[98] * 1e3} {failures}"


if __name__ == "__main__":
    port, path, seconds, size, *metadata = sys.argv[1:]
    print(uvloop.run(_load(int(port), path, float(seconds), int(size), metadata)))
