"""Several replicas behind one name: calls are spread, and none is lost while replicas stop, start, die and come to be."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from libs.errors import AppError, Transient
from libs.rpc import Client, Signer, acting_for, generate_key
from libs.rpc.client import PATIENCE_SECONDS
from tests.integration.rpc.scene import Compute, create, get, name_server, server_of
from tests.platform import free_port

PRIVATE, PUBLIC = generate_key()
CALLERS = 8


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    client = Client(ComputeServiceStub, address, Signer(PRIVATE, "gateway"))
    try:
        yield client
    finally:
        await client.close()


class Load:
    """Calls without a pause: creates, which are never tried twice, and reads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.created: list[str] = []
        self.by: Counter[str] = Counter()
        self.read = 0
        self.failed: list[tuple[str, AppError]] = []
        self._stop = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]
        try:
            yield self
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def _call(self, caller: int) -> None:
        number = 0
        with acting_for("acme"):
            while not self._stop:
                number += 1
                kind = "create" if caller % 2 else "read"
                try:
                    if kind == "create":
                        answer = await self._client.CreateAllocation(create(f"{caller}/{number}"))
                        self.created.append(answer.id)
                    else:
                        answer = await self._client.GetAllocation(get())
                        self.read += 1
                    self.by[answer.node] += 1
                except AppError as error:
                    self.failed.append((kind, error))
                    await asyncio.sleep(0.01)


async def until(check: Callable[[], object], seconds: float = 10.0) -> float:
    """How long it took."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0.01)
    return time.monotonic() - started


async def test_no_call_fails_while_one_replica_after_the_other_starts_again() -> None:
    computes = [Compute("one", 0.005), Compute("two", 0.005)]
    servers = [server_of(compute, "127.0.0.1:0", PUBLIC) for compute in computes]
    for server in servers:
        await server.start()
    addresses = [server.address for server in servers]
    async with client_of("ipv4:" + ",".join(addresses)) as client, Load(client).running() as load:
        await until(lambda: load.by["one"] > 10 and load.by["two"] > 10)
        for turn in range(6):
            which = turn % 2
            await servers[which].stop(5.0)
            await asyncio.sleep(0.1)
            servers[which] = server_of(computes[which], addresses[which], PUBLIC)
            await servers[which].start()
            seen = load.by[computes[which].name]
            assert await until(lambda name=computes[which].name, seen=seen: load.by[name] > seen) < 2
    assert load.failed == []
    made = computes[0].created + computes[1].created
    assert sorted(made) == sorted(load.created) == sorted(set(made))
    for server in servers:
        await server.stop(0)


async def test_a_moment_without_any_replica_fails_no_call_and_a_long_one_fails_at_once() -> None:
    compute = Compute("one")
    server = server_of(compute, "127.0.0.1:0", PUBLIC)
    await server.start()
    address = server.address
    async with client_of(address) as client:
        async with Load(client).running() as load:
            await until(lambda: load.by["one"] > 10)
            await server.stop(5.0)
            await asyncio.sleep(1.0)
            server = server_of(compute, address, PUBLIC)
            await server.start()
            seen = load.by["one"]
            await until(lambda: load.by["one"] > seen)
        assert load.failed == []
        assert sorted(compute.created) == sorted(load.created)
        await server.stop(0)
        with acting_for("acme"):
            took = []
            for _ in range(6):
                began = time.monotonic()
                with pytest.raises(Transient, match="cannot be reached"):
                    await client.CreateAllocation(create("away"))
                took.append(time.monotonic() - began)
    assert max(took) < PATIENCE_SECONDS + 2
    assert took[-1] < 0.5, "nobody waits any more for a service that stays away"


async def test_connections_that_have_grown_old_lose_no_call() -> None:
    computes = [Compute("one", 0.005), Compute("two", 0.005)]
    servers = [server_of(compute, "127.0.0.1:0", PUBLIC, connection_age_seconds=0.2) for compute in computes]
    for server in servers:
        await server.start()
    async with client_of("ipv4:" + ",".join(server.address for server in servers)) as client, Load(client).running() as load:
        await asyncio.sleep(2)
    assert load.failed == []
    assert sorted(computes[0].created + computes[1].created) == sorted(load.created)
    for server in servers:
        await server.stop(0)


async def test_a_name_s_new_replicas_are_found_and_gone_ones_forgotten() -> None:
    port = free_port()
    computes = [Compute("127.0.0.1", 0.005), Compute("127.0.0.2", 0.005)]
    servers = [server_of(compute, f"{compute.name}:{port}", PUBLIC, connection_age_seconds=0.5) for compute in computes]
    async with name_server() as (names, where), client_of(f"dns://{where}/compute.test:{port}") as client:
        names.addresses = ["127.0.0.1"]
        await servers[0].start()
        async with Load(client).running() as load:
            await until(lambda: load.by["127.0.0.1"] > 20)
            # One more replica.
            await servers[1].start()
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await until(lambda: load.by["127.0.0.2"] > 20)
            # One less.
            names.addresses = ["127.0.0.2"]
            await servers[0].stop(5.0)
            seen = load.by["127.0.0.2"]
            await until(lambda: load.by["127.0.0.2"] > seen + 20)
        assert load.failed == []
        await servers[1].stop(0)


async def test_a_service_that_moved_is_found_at_its_new_address() -> None:
    port = free_port()
    first, second = (server_of(Compute(host), f"{host}:{port}", PUBLIC) for host in ("127.0.0.1", "127.0.0.2"))
    async with name_server() as (names, where), client_of(f"dns://{where}/compute.test:{port}") as client:
        names.addresses = ["127.0.0.1"]
        await first.start()
        with acting_for("acme"):
            assert (await client.GetAllocation(get())).node == "127.0.0.1"
            await first.stop(0)
            names.addresses = ["127.0.0.2"]
            await second.start()

            async def answers() -> bool:
                try:
                    return (await client.GetAllocation(get(), timeout=2)).node == "127.0.0.2"
                except Transient:
                    return False

            async with asyncio.timeout(10):
                while not await answers():  # noqa: ASYNC110 (another process makes it so)
                    await asyncio.sleep(0.05)
        await second.stop(0)


async def test_a_replica_that_was_killed_is_left_at_once() -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = [await _start(address) for address in addresses]
    try:
        async with client_of("ipv4:" + ",".join(addresses)) as client, Load(client).running() as load:
            await until(lambda: min(load.by[address] for address in addresses) > 50)
            os.kill(processes[0].pid, signal.SIGKILL)
            await processes[0].wait()
            await asyncio.sleep(0.3)
            failed, seen = list(load.failed), load.by[addresses[1]]
            await until(lambda: load.by[addresses[1]] > seen + 100)
            assert load.failed == failed
            # What was under way is known to be lost where it may have been done; reads were asked of the other one.
            assert {kind for kind, _ in failed} <= {"create"}
            assert len(failed) <= CALLERS
            processes[0] = await _start(addresses[0])
            seen = load.by[addresses[0]]
            assert await until(lambda: load.by[addresses[0]] > seen) < 5
    finally:
        for process in processes:
            process.kill()
            await process.wait()


async def _start(address: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.rpc.replica", address, PUBLIC, stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    assert process.stdout
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("address", ["compute:9000", "compute.test:9000"])
async def test_a_name_that_stands_for_nothing_is_no_hang(address: str) -> None:
    async with client_of(address) as client:
        started = time.monotonic()
        with acting_for("acme"), pytest.raises(Transient):
            await client.CreateAllocation(create("a"), timeout=3)
        assert time.monotonic() - started < 4
