"""Connections to replicas: kept, found closed, broken off, streamed, taken back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from services.gateway.inference.connection import Address, BrokenOff, Pool, Unanswered

ASK = [b"POST /predict HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n", b"{}"]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def replica(talk: Talk) -> AsyncIterator[tuple[Pool, Address, list[int]]]:
    """`talk` on each connection; how many there were."""
    opened = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened[0] += 1
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool()
    await pool.start()
    try:
        yield pool, server.sockets[0].getsockname()[:2], opened
    finally:
        await pool.stop()
        server.close()


async def read(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"{}")


async def test_a_connection_is_kept() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read(reader)
            writer.write(OK)

    async with replica(talk) as (pool, address, opened):
        for _ in range(5):
            reply = await pool.ask(address, ASK)
            assert (reply.status, reply.body, reply.headers[b"content-type"]) == (200, b"{}", b"application/json")
        assert opened == [1]
        await asyncio.gather(*(pool.ask(address, ASK) for _ in range(4)))
        assert opened == [4]


async def test_one_that_says_so_is_not_kept() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(OK.replace(b"content-type", b"connection: close\r\ncontent-type"))

    async with replica(talk) as (pool, address, opened):
        for _ in range(3):
            assert (await pool.ask(address, ASK)).body == b"{}"
        assert opened == [3]


async def test_interim_answers_are_passed_over_and_chunks_are_put_together() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        await reader.read()

    async with replica(talk) as (pool, address, _):
        assert (await pool.ask(address, ASK)).body == b"abc"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Unanswered),
        (b"HTTP/1.1 200 OK\r\n", BrokenOff),
        (OK[:-1], BrokenOff),
        (b"nonsense\r\n\r\n", BrokenOff),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000, BrokenOff),
    ],
)
async def test_what_ends_too_soon(said: bytes, error: type[Exception]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(said)

    async with replica(talk) as (pool, address, _):
        with pytest.raises(error):
            await asyncio.wait_for(pool.ask(address, ASK), 5)


async def test_nobody_listens() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with replica(talk) as (pool, address, _):
        pass
    pool = Pool()
    with pytest.raises(Unanswered):
        await pool.ask(address, ASK)


async def test_a_caller_that_leaves_takes_its_request_back() -> None:
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        gone.set()

    async with replica(talk) as (pool, address, _):
        asking = asyncio.create_task(pool.ask(address, ASK))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait_for(gone.wait(), 5)


EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


async def test_events_come_one_by_one() -> None:
    go_on = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read(reader)
            writer.write(EVENTS + chunk(b"data: 1\n\n"))
            await go_on.wait()
            writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    async with replica(talk) as (pool, address, opened):
        ended = []
        reply = await pool.ask(address, ASK)
        assert reply.stream is not None
        reply.stream.on_end = lambda: ended.append(1)
        parts = aiter(reply.stream)
        assert await anext(parts) == b"data: 1\n\n"
        assert not ended
        go_on.set()
        assert [part async for part in parts] == [b"data: 2\n\n"]
        assert ended == [1]
        assert (await pool.ask(address, ASK)).stream is not None
        assert opened == [1]


async def test_a_stream_that_breaks_off_says_so() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(EVENTS + chunk(b"data: 1\n\n"))

    async with replica(talk) as (pool, address, _):
        reply = await pool.ask(address, ASK)
        assert reply.stream is not None
        with pytest.raises(BrokenOff):
            [part async for part in reply.stream]


async def test_a_reader_that_is_slow_holds_the_replica_back() -> None:
    sent = [0]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(EVENTS)
        for _ in range(1000):
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
            sent[0] += 1
        writer.write(b"0\r\n\r\n")

    async with replica(talk) as (pool, address, _):
        reply = await pool.ask(address, ASK)
        assert reply.stream is not None
        await asyncio.sleep(0.5)
        assert sent[0] < 300
        assert sum([len(part) async for part in reply.stream]) == 65536 * 1000
