"""Connections that say too much, too slowly, or nothing."""

import asyncio
import socket
import time

import httpx
import pytest

from services.gateway.conftest import World
from services.gateway.http_server import HttpServer, Together
from services.gateway.settings import GatewaySettings, Limits

HEAD = b"GET /v1/me HTTP/1.1\r\nhost: a\r\nauthorization: Bearer owner-key\r\n"


@pytest.fixture
def limits() -> Limits:
    return Limits(head_seconds=0.5, body_seconds=0.5, idle_seconds=1)


async def talk(world: World, *parts: bytes, pause: float = 0.0) -> bytes:
    host, port = world.gateway.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_heads_that_are_too_large(world: World) -> None:
    for head in (
        HEAD + b"x: " + b"y" * 64_000 + b"\r\n\r\n",
        HEAD + b"x: y\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 64_000 + b" HTTP/1.1\r\n\r\n",
    ):
        answer = await talk(world, head)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b"reset"
        assert answer == b"reset" or b"application/problem+json" in answer


async def test_a_header_without_an_end(world: World) -> None:
    answer = await talk(world, HEAD + b"x: ", *[b"y" * 16_000] * 8, pause=0.02)
    assert answer.startswith(b"HTTP/1.1 431") or answer == b"reset"


async def test_nonsense_is_answered_with_a_problem(world: World) -> None:
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HELO lepton\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        answer = await talk(world, nonsense)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"code":"invalid_request"' in answer


@pytest.mark.parametrize("parts", [(), (b"\r\n",), (HEAD,), (b"GET",)])
async def test_who_says_nothing_or_stops_in_the_middle_is_hung_up_on(world: World, parts: tuple[bytes, ...]) -> None:
    started = time.monotonic()
    assert await talk(world, *parts) == b""
    assert time.monotonic() - started < 2


async def test_a_body_that_does_not_come(world: World) -> None:
    head = b"POST /v1/datasets HTTP/1.1\r\nhost: a\r\nauthorization: Bearer owner-key\r\ncontent-length: 100\r\n\r\n{"
    answer = await talk(world, head)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"did not arrive" in answer


async def test_idle_connections_are_closed_and_kept_until_then(world: World) -> None:
    answer = await talk(world, HEAD + b"\r\n", HEAD + b"\r\n", pause=0.3)
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_a_large_upload_without_a_key_hears_why(world: World) -> None:
    response = await world.client.put("/v1/datasets/a/content", content=b"x" * (4 << 20), headers={"authorization": "Bearer nobody"})
    assert response.status_code == 401


async def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(lambda *_: None, GatewaySettings(port=port), draining=asyncio.Event(), closing=asyncio.Event())
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is taken"):
            await server.start()


async def test_a_gateway_that_is_about_to_stop_answers_and_sends_its_clients_elsewhere(world: World) -> None:
    assert (await world.client.get("/healthz")).headers.get("connection") is None
    world.gateway._server._settings = world.gateway._server._settings.model_copy(update={"drain_seconds": 0.6})
    stopping = asyncio.create_task(world.gateway.stop())
    await asyncio.sleep(0.3)
    for path in ("/healthz", "/readyz"):
        assert (await world.client.get(path)).status_code == 503
    answer = await world.client.get("/v1/datasets")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    await stopping
    with pytest.raises(httpx.ConnectError):
        await world.client.get("/healthz")


class Transport(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_what_is_written_in_one_turn_of_the_loop_leaves_together() -> None:
    transport = Transport()
    together = Together(transport, asyncio.get_running_loop().call_soon)
    together.write(b"head ")
    together.write(b"body")
    assert transport.sent == []
    await asyncio.sleep(0)
    together.write(b"last words")
    together.close()
    assert transport.sent == [b"head body", b"last words"]
    assert transport.closed


async def test_much_is_not_kept_until_the_turn_is_over() -> None:
    transport = Transport()
    together = Together(transport, asyncio.get_running_loop().call_soon)
    for _ in range(10):
        together.write(b"x" * 30_000)
    assert sum(map(len, transport.sent)) >= 200_000


async def test_nothing_is_sent_on_a_connection_that_was_lost_meanwhile() -> None:
    transport = Transport()
    together = Together(transport, asyncio.get_running_loop().call_soon)
    together.write(b"head")
    transport.close()
    await asyncio.sleep(0)
    assert transport.sent == []
