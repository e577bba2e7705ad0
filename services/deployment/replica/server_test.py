"""Callers that are slow, rude, gone or too many, over real sockets: each is told so, and the replica lives."""

import asyncio
import json
import socket
import struct
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from services.deployment.replica.app import MAX_BODY, Replica
from services.deployment.replica.server import Limits, Server

TOKEN = b"x-lepton-replica-token: secret\r\n"
BODY = b'{"instances": [{"a": 1, "b": "x"}]}'
QUICK = Limits(head_seconds=0.2, body_seconds=0.2, idle_seconds=0.4, write_seconds=0.4, linger_seconds=0.2)


def post(body=BODY, path=b"/predict", headers=b"", token=TOKEN):
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%s%scontent-length: %d\r\n\r\n%s" % (path, token, headers, len(body), body)


class Caller:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, data):
        self.writer.write(data)

    async def ask(self, data):
        self.send(data)
        return await self.reply()

    async def reply(self):
        """Status, headers and body of the next answer that is no interim one."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        status = int(head[0].split()[1])
        if status == 100:
            return await self.reply()
        return status, headers, await self.reader.readexactly(int(headers["content-length"]))

    async def closed(self):
        try:
            return await asyncio.wait_for(self.reader.read(), 20) == b""
        except ConnectionError:
            return True


class Place:
    def __init__(self, server, address):
        self.server, self.address, self.callers = server, address, []

    async def call(self):
        caller = Caller(*await asyncio.open_connection(*self.address))
        self.callers.append(caller)
        return caller

    async def lives(self):
        return (await (await self.call()).ask(post()))[0] == 200


@asynccontextmanager
async def serving(runtime, limits=Limits(), **options):
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server = Server(Replica(runtime, "secret", "m", **options), limits)
    await server.start(listening)
    place = Place(server, listening.getsockname())
    try:
        yield place
    finally:
        for caller in place.callers:
            caller.writer.close()
        await server.drain(1)


async def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_one_connection_many_requests_in_order(runtime):
    async with serving(runtime) as place:
        caller = await place.call()
        caller.send(post() + b"GET /v2 HTTP/1.1\r\n" + TOKEN + b"\r\n" + post(b"{") + post())
        assert [(await caller.reply())[0] for _ in range(4)] == [200, 200, 400, 200]
        for part in [post()[:10], post()[10:80], post()[80:]]:
            caller.send(part)
            await asyncio.sleep(0.01)
        status, headers, body = await caller.reply()
        assert (status, headers["x-lepton-rows"]) == (200, "1")
        assert "prediction" in json.loads(body)["predictions"][0]


async def test_chunks_and_expectations(runtime):
    async with serving(runtime) as place:
        caller = await place.call()
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:]))
        head = b"POST /predict HTTP/1.1\r\n" + TOKEN
        assert (await caller.ask(head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"))[0] == 200
        caller.send(head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await caller.ask(BODY))[0] == 200


async def test_head_and_close_and_old_callers(runtime):
    async with serving(runtime) as place:
        caller = await place.call()
        caller.send(b"HEAD /v2 HTTP/1.1\r\n" + TOKEN + b"\r\n")
        head = await caller.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: " in head
        assert (await caller.ask(post(headers=b"connection: close\r\n")))[1]["connection"] == "close"
        assert await caller.closed()
        old = await place.call()
        assert (await old.ask(post().replace(b"HTTP/1.1", b"HTTP/1.0")))[0] == 200
        assert await old.closed()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 413),
        (b"GET /v2 HTTP/1.1\r\na: " + b"b" * 20_000, 413),
        (b"GET /" + b"v" * 40_000 + b" HTTP/1.1\r\n\r\n", 413),
        (post(headers=b"transfer-encoding: chunked\r\n"), 400),
        (post(headers=b"content-length: 3\r\n"), 400),
        (b"POST /predict HTTP/1.1\r\n" + TOKEN + b"content-length: -1\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + TOKEN + b"content-length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + TOKEN + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n" + TOKEN + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(runtime, data, status):
    async with serving(runtime, QUICK) as place:
        caller = await place.call()
        assert (await caller.ask(data))[0] == status
        assert await caller.closed()
        assert await place.lives()


@pytest.mark.parametrize(
    ("path", "token", "size", "status", "shape"),
    [
        (b"/predict", TOKEN, 1 << 30, 413, "detail"),
        (b"/v2/models/m/infer", TOKEN, MAX_BODY + 1, 413, "error"),
        (b"/predict", b"", 1 << 20, 401, "detail"),
        (b"/v2/models/other/infer", TOKEN, 1 << 20, 404, "error"),
        (b"/v2/health/live", TOKEN, 1 << 20, 405, "error"),
    ],
)
async def test_large_bodies_are_refused_by_their_head(runtime, path, token, size, status, shape):
    async with serving(runtime, QUICK) as place:
        caller = await place.call()
        begun = time.monotonic()
        caller.send(b"POST %s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n" % (path, token, size))
        got, headers, body = await caller.reply()
        assert (got, headers["connection"], time.monotonic() - begun < 1) == (status, "close", True)
        assert shape in json.loads(body)
        # A caller that goes on sending gets rid of some, is not kept in memory, and is cut off.
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                caller.send(b" " * (1 << 16))
                await caller.writer.drain()
                await asyncio.sleep(0.001)
        assert place.server.buffered == 0
        assert await place.lives()


async def test_a_body_that_grows_beyond_all_bounds_is_cut_off(runtime):
    async with serving(runtime, QUICK) as place:
        caller = await place.call()
        caller.send(b"POST /predict HTTP/1.1\r\n" + TOKEN + b"transfer-encoding: chunked\r\n\r\n")
        part = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range((MAX_BODY >> 20) + 1):
            caller.send(part)
            await asyncio.sleep(0)
        assert (await caller.reply())[0] == 413
        assert place.server.buffered == 0


async def test_small_refused_bodies_do_not_end_the_connection(runtime):
    async with serving(runtime) as place:
        caller = await place.call()
        assert (await caller.ask(post(token=b"")))[0] == 401
        assert (await caller.ask(post(path=b"/nothing")))[0] == 404
        assert (await caller.ask(post()))[0] == 200


async def test_bodies_of_all_connections_are_bounded_together(runtime):
    async with serving(runtime, Limits(buffered_bytes=1000)) as place:
        first, second = await place.call(), await place.call()
        whole = post(b" " * 2000 + BODY)
        first.send(whole[:-10])
        await until(lambda: place.server.buffered > 1000)
        status, headers, _ = await second.ask(post())
        assert (status, headers["retry-after"]) == (429, "1")
        first.send(whole[-10:])
        assert (await first.reply())[0] == 200
        assert (await second.ask(post()))[0] == 200
        assert place.server.buffered == 0


@pytest.mark.parametrize("begun", [b"POST /pre", b"POST /predict HTTP/1.1\r\nhost: x\r\n", post()[:-5], post(b" " * 100_000)[:90_000]])
async def test_slow_senders_are_told_and_cut_off(runtime, begun):
    async with serving(runtime, QUICK) as place:
        caller = await place.call()
        status, headers, body = await caller.ask(begun)
        assert (status, headers["connection"]) == (400, "close")
        assert b"did not come within" in body
        assert await caller.closed()
        await until(lambda: not place.server.connections)
        assert place.server.buffered == 0


async def test_idle_connections_end(runtime):
    async with serving(runtime, QUICK) as place:
        caller = await place.call()
        assert await caller.closed()


async def test_a_caller_that_reads_no_answer_is_cut_off(runtime):
    limits = Limits(write_seconds=0.4)
    async with serving(runtime, limits, max_rows=1_000_000) as place:
        caller = await place.call()
        rows = post(json.dumps({"instances": [{"a": 1}] * 10_000}).encode())
        for _ in range(limits.pipelined):  # their answers are more than all buffers between the two hold
            caller.send(rows)
        await until(lambda: place.server.connections)
        await until(lambda: not place.server.connections)
        assert await place.lives()


async def test_too_many_connections_are_told(runtime):
    async with serving(runtime, Limits(connections=2)) as place:
        kept = [await place.call(), await place.call()]
        for caller in kept:
            assert (await caller.ask(post()))[0] == 200
        over = await place.call()
        assert (await over.reply())[0] == 503
        assert await over.closed()
        assert (await kept[0].ask(post()))[0] == 200


async def test_a_half_closed_caller_gets_its_answer(slow):
    async with serving(slow(0.1)) as place:
        caller = await place.call()
        caller.send(post())
        caller.writer.write_eof()
        assert (await caller.reply())[0] == 200
        assert await caller.closed()
        await until(lambda: not place.server.connections)


@pytest.mark.parametrize("rudely", [True, False])
async def test_rows_of_a_caller_that_went_away_leave_the_queue(slow, rudely):
    async with serving(slow(0.4)) as place:
        batcher = place.server.application.batcher
        first, second, gone = await place.call(), await place.call(), await place.call()
        first.send(post())
        await until(lambda: batcher._busy)
        second.send(post())
        gone.send(post())
        await until(lambda: batcher._rows == 2)
        if rudely:
            gone.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.writer.close()
        begun = time.monotonic()
        await until(lambda: batcher._rows == 1)
        assert time.monotonic() - begun < 0.3
        assert ((await first.reply())[0], (await second.reply())[0]) == (200, 200)
        assert batcher.statistics.rows == 2


@pytest.mark.parametrize(("path", "shape"), [(b"/predict", "detail"), (b"/v2/models/m/infer", "error")])
async def test_a_full_queue_is_told_at_once_and_when_to_come_back(slow, path, shape):
    async with serving(slow(0.3), max_rows=1) as place:
        callers = [await place.call() for _ in range(3)]
        callers[0].send(post())
        await until(lambda: place.server.application.batcher._busy)
        callers[1].send(post())
        await until(lambda: place.server.application.batcher._rows == 1)
        begun = time.monotonic()
        status, headers, body = await callers[2].ask(post(path=path))
        took = time.monotonic() - begun
        assert (status, int(headers["retry-after"]) >= 1, shape in json.loads(body)) == (429, True, True)
        assert took < 0.2  # 50 ms on a machine that is not busy
        assert (await callers[2].ask(b"GET /healthz HTTP/1.1\r\n" + TOKEN + b"\r\n"))[0] == 200
        assert [(await caller.reply())[0] for caller in callers[:2]] == [200, 200]
        assert (await callers[2].ask(post()))[0] == 200


@pytest.mark.parametrize(("path", "shape"), [(b"/predict", "detail"), (b"/v2/models/m/infer", "error")])
async def test_what_waits_beyond_its_deadline_costs_the_model_nothing(slow, path, shape):
    tensors = [
        {"name": "a", "shape": [1], "datatype": "FP64", "data": [1]},
        {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["x"]},
    ]
    body = BODY if path == b"/predict" else json.dumps({"inputs": tensors}).encode()
    async with serving(slow(0.5)) as place:
        first, second = await place.call(), await place.call()
        first.send(post(headers=b"x-lepton-deadline-ms: 60000\r\n"))
        await until(lambda: place.server.application.batcher._busy)
        begun = time.monotonic()
        status, _, answer = await second.ask(post(body, path, b"x-lepton-deadline-ms: 50\r\n"))
        assert (status, shape in json.loads(answer), time.monotonic() - begun < 0.4) == (504, True, True)
        assert (await first.reply())[0] == 200
        assert place.server.application.batcher.statistics.rows == 1
        assert (await second.ask(post(headers=b"x-lepton-deadline-ms: soon\r\n")))[0] == 400


async def test_a_drain_answers_what_is_in_hand_and_refuses_the_rest(slow):
    async with serving(slow(0.3)) as place:
        busy, idle = await place.call(), await place.call()
        assert (await idle.ask(b"GET /v2/health/ready HTTP/1.1\r\n" + TOKEN + b"\r\n"))[0] == 200
        busy.send(post())
        await until(lambda: place.server.application.batcher._busy)
        drained = asyncio.create_task(place.server.drain(10))
        await asyncio.sleep(0)
        status, headers, body = await idle.ask(post())
        assert (status, headers["connection"], "leaving" in json.loads(body)["detail"]) == (503, "close", True)
        with pytest.raises(OSError):
            await place.call()
        status, headers, _ = await busy.reply()
        assert (status, headers["connection"]) == (200, "close")
        await asyncio.wait_for(drained, 5)
        assert not place.server.connections


async def test_malformed_requests_leave_nothing_behind(runtime):
    """Sizes of what the server keeps, and the process's memory, after a thousand refusals of each kind."""
    tensors = [{"name": "a", "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": 8}}]
    head = json.dumps({"inputs": tensors}).encode()
    lengths = b"inference-header-content-length: %d\r\n"
    bad = [
        post(b"{" * 1000),
        post(b'{"instances": [{"a": NaN}]}'),
        post(json.dumps({"instances": [{"a": "x" * 1000}]}).encode()),
        post(head + np.array([np.nan]).tobytes(), b"/v2/models/m/infer", lengths % len(head)),
        post(head + b"123", b"/v2/models/m/infer", lengths % len(head)),
        post(b"{}", b"/v2/models/m/infer", lengths % 10**9),
    ]
    async with serving(runtime) as place:
        caller = await place.call()

        async def refuse(times):
            for _ in range(times):
                for request in bad:
                    assert (await caller.ask(request))[0] in (400, 422)

        await refuse(200)
        before = resident()
        await refuse(1000)
        assert resident() - before < 2048
        assert (place.server.buffered, place.server.application.batcher._rows) == (0, 0)
        assert await place.lives()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
