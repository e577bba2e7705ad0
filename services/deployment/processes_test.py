"""Real replicas: they answer soon, are replaced when they are killed, and end with whoever ran them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lepton.deployment.v1 import deployment_service_pb2 as pb
from libs.errors import Transient
from libs.launcher import InMemoryLauncher
from libs.rpc import Client, acting_for
from libs.storage import InMemoryArtifactStore
from libs.testing import migrated_database
from services.deployment import repository, smoke
from services.deployment.conftest import Accounts, Compute, Training, World, running, serving, ship
from services.deployment.runner import is_healthy
from services.deployment.settings import Settings
from services.deployment.tables import Endpoint, Replica

Eventually = Callable[..., Any]
OWNER = "import asyncio, sys; from services.deployment.conftest import run_owner; asyncio.run(run_owner(*sys.argv[1:]))"
NODE = "import asyncio, sys; from services.deployment.conftest import run_node; asyncio.run(run_node(*sys.argv[1:]))"


@pytest.fixture
async def deployment(world: World, package: Path, tmp_path: Path) -> AsyncIterator[Client]:
    await ship(world, package)
    embedded = running(world)
    await embedded.start()
    async with serving(world, embedded, tmp_path) as client:
        yield client
    await embedded.stop()
    alive = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if "services.deployment.replica" in p.cmdline()]


async def resolve(deployment: Client) -> pb.ReplicaAddress:
    return (await deployment.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=30))).replicas[0]


async def answers(address: pb.ReplicaAddress) -> bool:
    host, _, port = address.url.removeprefix("http://").partition(":")
    return await is_healthy(host, int(port), address.token, 2)


def pid_of(address: pb.ReplicaAddress) -> int:
    port = int(address.url.rpartition(":")[2])
    found = [p.pid for p in psutil.Process().children(recursive=True) for c in p.net_connections("inet") if c.laddr.port == port]
    return found[0]


async def test_the_first_answer_comes_soon_and_a_killed_replica_is_replaced(deployment: Client, world: World) -> None:
    start = time.monotonic()
    with acting_for("acme"):
        await deployment.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
    first = await resolve(deployment)
    assert time.monotonic() - start < 5  # 0.5 s on an idle machine
    assert await answers(first)
    os.kill(pid_of(first), signal.SIGKILL)
    # The signal takes a moment; a router asks again at once when its connection broke.
    while await answers(first):
        pass
    second = await resolve(deployment)
    assert second.id != first.id and second.token != first.token
    assert await answers(second)
    assert not await answers(first)


async def test_what_listens_and_cannot_answer_a_prediction_is_not_ready() -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = next(statuses)
        writer.write(f"HTTP/1.1 {status} -\r\n\r\n".encode() if status else b"")
        writer.close()

    statuses = iter([200, 422, 500, 0])
    server = await asyncio.start_server(fail, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        whys = [await smoke.why_not("127.0.0.1", port, "token", {"a": 0.0}, 5) for _ in range(4)]
    assert whys[:3] == ["", "", "it answered its first prediction with 500"]
    assert whys[3]
    assert "broke off" in await smoke.why_not("127.0.0.1", port, "token", {"a": 0.0}, 5)


async def test_a_replica_that_cannot_start_says_why(world: World, deployment: Client, eventually: Eventually) -> None:
    await world.add_model("broken@1", b"no json")
    with acting_for("acme"):
        await deployment.CreateEndpoint(pb.CreateEndpointRequest(name="broken", model="broken"))

        async def told() -> str:
            endpoint = await deployment.GetEndpoint(pb.GetEndpointRequest(name="broken"))
            return endpoint.error.detail

        assert "model.json" in await eventually(told, 20)


async def test_kill_9_of_the_platform_ends_replicas_and_the_next_one_starts_them_again(
    package: Path, tmp_path: Path, eventually: Eventually
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/deployment.db"

    def start(turn: int) -> "subprocess.Popen[bytes]":
        folder = tmp_path / str(turn)
        folder.mkdir()
        return subprocess.Popen([sys.executable, "-c", OWNER, url, tmp_path / "work", package, folder])

    async def ready_pids() -> list[int]:
        try:
            async with migrated_database("services.deployment", url) as database, database.read() as session:
                endpoint: Endpoint | None = await repository.find_endpoint(session, "acme", "wdbc")
                live: list[Replica] = (await repository.live_replicas(session, [endpoint]))[endpoint.id] if endpoint else []
        except Exception:
            return []
        pids = [int(replica.handle.split(":")[0]) for replica in live if replica.state == "ready"]
        return pids if len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids) else []

    first = start(1)
    before = await eventually(ready_pids, 40)
    first.kill()
    first.wait()
    second = start(2)
    after = await eventually(lambda: _others(ready_pids, before), 40)

    async def gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in before)

    await eventually(gone, 10)
    assert set(after).isdisjoint(before)
    second.kill()
    second.wait()

    async def all_gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in after)

    await eventually(all_gone, 10)


async def test_replicas_outlive_a_node_process_elsewhere_whether_it_is_stopped_or_killed(
    package: Path, tmp_path: Path, eventually: Eventually
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/deployment.db"
    settings = Settings(reconcile_seconds=0.1)
    nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        nodes[name] = subprocess.Popen([sys.executable, "-c", NODE, url, tmp_path / name, package, name])

    async def replaced(before: pb.ReplicaAddress) -> pb.ReplicaAddress | None:
        try:
            found = await resolve(deployment)
        except Transient:  # A call waits for 10 s at most.
            return None
        return found if found.id != before.id and await answers(found) else None

    async def gone(pid: int) -> bool:
        return not psutil.pid_exists(pid)

    async with migrated_database("services.deployment", url) as database:
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        await ship(world, package)
        planner = world.planner()
        await planner.start()
        start("n1")
        try:
            async with serving(world, planner, tmp_path) as deployment:
                with acting_for("acme"):
                    await deployment.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
                first = await resolve(deployment)
                assert await answers(first)
                first_pid = pid_of(first)
                start("n2")
                world.compute.node = "n2"
                nodes["n1"].send_signal(signal.SIGTERM)
                second = await eventually(lambda: replaced(first), 40)
                assert await asyncio.to_thread(nodes["n1"].wait, 15) == 0
                await eventually(lambda: gone(first_pid), 10)
                start("n3")
                second_pid, world.compute.node = pid_of(second), "n3"
                nodes["n2"].kill()
                nodes["n2"].wait()
                await eventually(lambda: replaced(second), 40)
                await eventually(lambda: gone(second_pid), 10)
        finally:
            for node in nodes.values():
                node.kill()
                node.wait()
            await planner.stop()


async def _others(look: Callable[[], Any], before: list[int]) -> list[int]:
    found = await look()
    return found if set(found).isdisjoint(before) else []
