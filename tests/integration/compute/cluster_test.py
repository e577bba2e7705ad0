"""The agent of a cluster, between an API over HTTP and a compute service over gRPC."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
from pydantic import SecretStr

from lepton.common.v1.resource_pb2 import Resources
from lepton.compute.v1 import allocation_pb2, compute_service_pb2, node_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub, add_ComputeServiceServicer_to_server
from libs.errors import Transient
from libs.launcher import LauncherSettings
from libs.rpc import Client, IdentitySettings, Server, Signer, Verifier, acting_for, generate_key
from libs.testing import FakeClock, migrated_database
from services.compute.agent import NodeAgent
from services.compute.cluster import KEPT_SECONDS, MAX_MACHINES, ClusterAgent
from services.compute.handlers import Scheduler
from services.compute.main import build_agent
from services.compute.servicer import ComputeServicer
from services.compute.settings import Settings
from tests.cluster_api import TOKEN, ClusterApi, a_node, a_pod, cluster_api

PRIVATE, PUBLIC = generate_key()
READY, CORDONED, LOST = node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_CORDONED, node_pb2.NODE_STATE_LOST


class Desk:
    """Stands in for compute: what was registered, by name, and call by call. `refused` names one that it does not take."""

    def __init__(self) -> None:
        self.nodes: dict[str, node_pb2.Node] = {}
        self.refused = ""
        self.calls: asyncio.Queue[str] = asyncio.Queue()

    async def RegisterNode(self, request: compute_service_pb2.RegisterNodeRequest) -> node_pb2.Node:
        if request.node.name == self.refused:
            raise Transient("not now")
        self.nodes[request.node.name] = request.node
        self.calls.put_nowait(request.node.name)
        return request.node


def agent_of(api: ClusterApi, compute: Desk | Client, folder: Path, clock: FakeClock | None = None, lease: float = 15.0) -> ClusterAgent:
    settings = Settings(kubeconfig=api.kubeconfig(folder), node_lease_seconds=lease)
    return ClusterAgent(compute, settings, clock or FakeClock())


@asynccontextmanager
async def started(agent: ClusterAgent) -> AsyncIterator[ClusterAgent]:
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()


async def test_every_page_counts_and_nothing_is_asked_that_does_not(tmp_path: Path) -> None:
    desk = Desk()
    nodes = [a_node(f"n{n}") for n in range(600)]
    pods = [a_pod(f"p{n}", "n7", cpu="10m", memory="1Mi") for n in range(1100)]
    pods += [a_pod("done", "n7", cpu="1", phase="Succeeded"), a_pod("unbound", "", cpu="1"), a_pod("run", "n7", cpu="4", role="run")]
    async with cluster_api(nodes, pods) as api:
        agent = agent_of(api, desk, tmp_path)
        await agent.read()
        await agent.register()
        await agent.stop()
    assert len(desk.nodes) == 600
    assert (desk.nodes["n7"].cpu_millis, desk.nodes["n7"].memory_bytes) == (16_000 - 11_000, 64 * 2**30 - 1100 * 2**20)
    assert (desk.nodes["n8"].cpu_millis, desk.nodes["n8"].state) == (16_000, READY)
    assert [path.partition("?")[0] for path in api.asked] == ["/api/v1/nodes"] * 3 + ["/api/v1/pods"] * 6
    assert all("limit=200" in path for path in api.asked)


async def test_a_cluster_that_is_away_is_told_once_and_its_nodes_stay_for_a_minute(tmp_path: Path) -> None:
    desk, clock = Desk(), FakeClock()
    async with cluster_api([a_node("n1"), a_node("n2")]) as api:
        agent = agent_of(api, desk, tmp_path, clock)
        with structlog.testing.capture_logs() as logs:
            await agent.read()
            api.status = 503
            for _ in range(4):
                clock.advance(KEPT_SECONDS / 4)
                await agent.read()
                desk.nodes.clear()
                await agent.register()
                assert set(desk.nodes) == {"n1", "n2"}
            for _ in range(3):
                clock.advance(5)
                await agent.read()
                desk.nodes.clear()
                await agent.register()
                assert not desk.nodes
            api.status = 200
            api.nodes.pop()
            api.changed()
            await agent.read()
            await agent.register()
        assert set(desk.nodes) == {"n1"}
        await agent.stop()
    assert [line["event"] for line in logs] == ["cluster_away", "cluster_nodes_withdrawn", "cluster_back"]
    assert logs[0]["reason"] == "503: the server answers 503"


async def test_half_a_list_is_no_list(tmp_path: Path) -> None:
    desk = Desk()
    async with cluster_api([a_node(f"n{n}") for n in range(501)], [a_pod(f"p{n}", "n0") for n in range(501)]) as api:
        agent = agent_of(api, desk, tmp_path)
        await agent.read()
        api.expires = True
        await agent.read()
        await agent.register()
        await agent.stop()
    assert len(desk.nodes) == 501


async def test_a_cluster_that_hangs_does_not_keep_known_nodes_from_being_registered(tmp_path: Path) -> None:
    desk = Desk()
    async with cluster_api([a_node("n1")]) as api, started(agent_of(api, desk, tmp_path, lease=0.3)):
        api.hangs = True
        async with asyncio.timeout(20):
            await api.hung.wait()
            while not desk.calls.empty():
                desk.calls.get_nowait()
            for _ in range(5):
                assert await desk.calls.get() == "n1"
        api.release()


async def test_a_stop_that_is_not_waited_for_leaves_nothing_running(tmp_path: Path) -> None:
    desk = Desk()
    async with cluster_api([a_node("n1")]) as api:
        agent = agent_of(api, desk, tmp_path, lease=0.3)
        await agent.start()
        api.hangs = True
        await asyncio.wait_for(api.hung.wait(), 20)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.stop(), 0.2)
        await asyncio.sleep(0)
        assert not {task.get_name() for task in asyncio.all_tasks()} & {"cluster-reader", "cluster-speaker"}
        api.release()


async def test_a_start_without_its_cluster_waits_for_it(tmp_path: Path) -> None:
    desk = Desk()
    async with cluster_api([a_node("n1")]) as api:
        api.status = 403
        async with started(agent_of(api, desk, tmp_path, lease=0.3)):
            assert not desk.nodes
            api.status = 200
            assert await asyncio.wait_for(desk.calls.get(), 20) == "n1"


async def test_one_that_is_refused_does_not_keep_the_others_out(tmp_path: Path) -> None:
    desk = Desk()
    desk.refused = "n0"
    async with cluster_api([a_node(f"n{n}") for n in range(20)]) as api:
        agent = agent_of(api, desk, tmp_path)
        await agent.read()
        with pytest.raises(Transient, match="not now"):
            await agent.register()
        await agent.stop()
    assert len(desk.nodes) == 19


async def test_more_than_is_read_is_refused_with_words(tmp_path: Path) -> None:
    body = {"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    async with cluster_api([body] * (MAX_MACHINES + 1)) as api:
        agent = agent_of(api, Desk(), tmp_path)
        with structlog.testing.capture_logs() as logs:
            await agent.read()
        await agent.stop()
    assert logs[0]["reason"] == f"TooLarge: more than {MAX_MACHINES} nodes"


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_what_is_said_of_a_refusal_holds_no_token(tmp_path: Path, status: int) -> None:
    async with cluster_api([a_node("n1")]) as api:
        api.status = status
        agent = agent_of(api, Desk(), tmp_path)
        with structlog.testing.capture_logs() as logs:
            await agent.read()
        await agent.stop()
    assert logs[0]["event"] == "cluster_away"
    assert TOKEN not in repr(logs) + repr(vars(agent))


async def test_a_configuration_that_does_not_hold_is_refused_without_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    for text in (f"users: [{{token: {TOKEN}", f"{TOKEN}: 1", f'{{"users": [{{"name": "{TOKEN}"}}]}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="no cluster can be used") as refused:
            await ClusterAgent(Desk(), Settings(kubeconfig=str(path))).start()
        assert TOKEN not in f"{refused.value!r}{refused.value.__cause__}"
    with pytest.raises(ValueError, match="missing"):
        await ClusterAgent(Desk(), Settings(kubeconfig=str(tmp_path / "missing"))).start()


async def test_what_a_program_says_that_is_asked_for_credentials_is_not_told(tmp_path: Path) -> None:
    async with cluster_api([a_node("n1")]) as api:
        asks = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "sh", "args": ["-c", f"echo {TOKEN} >&2; exit 3"]}
        agent = ClusterAgent(Desk(), Settings(kubeconfig=api.kubeconfig(tmp_path, {"exec": asks})))
        with structlog.testing.capture_logs() as logs:
            await agent.read()
        await agent.stop()
    assert logs[0]["reason"] == "Exec sh returned 3"


async def test_an_agent_that_starts_before_compute_waits_for_it(tmp_path: Path) -> None:
    desk = Desk()
    desk.refused = "n1"
    async with cluster_api([a_node("n1")]) as api:
        agent = agent_of(api, desk, tmp_path)
        starting = asyncio.create_task(agent.start())
        await asyncio.wait([starting], timeout=0.3)
        assert not starting.done()
        desk.refused = ""
        await starting
        await agent.stop()
    assert set(desk.nodes) == {"n1"}


def test_the_setting_chooses_who_speaks() -> None:
    identity = IdentitySettings(private_key=SecretStr(PRIVATE))
    assert isinstance(build_agent(Settings(identity=identity)), NodeAgent)
    pods = LauncherSettings(url="kubernetes:", image="lepton/worker:dev")
    assert isinstance(build_agent(Settings(identity=identity, launcher=pods)), ClusterAgent)


@asynccontextmanager
async def compute_service(folder: Path, clock: FakeClock) -> AsyncIterator[SimpleNamespace]:
    scheduler = Scheduler(patience_seconds=60, clock=clock)
    async with migrated_database("services.compute") as database:
        address = f"unix:{folder}/compute.sock"
        registrations = [(ComputeServicer(database, scheduler), add_ComputeServiceServicer_to_server)]
        server = Server(address, registrations, verifier=Verifier(PUBLIC))
        await server.start()
        client = Client(ComputeServiceStub, address, Signer(PRIVATE, "gateway"))
        try:
            yield SimpleNamespace(client=client, database=database, scheduler=scheduler)
        finally:
            await client.close()
            await server.stop()


async def test_cordoned_keeps_its_work_unready_is_lost_and_gone_is_lost(tmp_path: Path) -> None:
    clock = FakeClock()

    async def states() -> dict[str, int]:
        await agent.read()
        await agent.register()
        async with service.database.unit() as unit:
            await service.scheduler.expire(unit, node_lease_seconds=15)
        with acting_for("acme"):
            return {node.name: node.state for node in (await compute.ListNodes(compute_service_pb2.ListNodesRequest())).nodes}

    async def ask(holder: str) -> allocation_pb2.Allocation:
        request = compute_service_pb2.CreateAllocationRequest(
            workspace="acme", holder=holder, resources=Resources(count=10), lease_seconds=600
        )
        answer: allocation_pb2.Allocation = await compute.CreateAllocation(request)
        return answer

    async with compute_service(tmp_path, clock) as service, cluster_api([a_node("n1")]) as api:
        compute: Client = service.client
        agent = agent_of(api, compute, tmp_path, clock)
        assert await states() == {"n1": READY}
        held = await ask("job-1")
        assert held.node == "n1"
        api.nodes[:] = [a_node("n1", unschedulable=True), a_node("n2", ready=False), a_node("n3")]
        api.changed()
        for _ in range(6):
            clock.advance(5)
            assert await states() == {"n1": CORDONED, "n3": READY}
        await compute.RenewAllocation(compute_service_pb2.RenewAllocationRequest(id=held.id))
        assert (await ask("job-2")).node == "n3"
        waiting = await ask("job-3")
        assert "waits for 10 cores" in waiting.reason
        api.nodes[:] = [a_node("n2"), a_node("n3", ready=False)]
        api.changed()
        await states()
        with acting_for("acme"):
            granted = await compute.GetAllocation(compute_service_pb2.GetAllocationRequest(id=waiting.id))
        assert granted.node == "n2"
        clock.advance(16)
        assert await states() == {"n1": LOST, "n2": READY, "n3": LOST}
        await agent.stop()


async def test_reading_a_large_cluster_takes_a_tenth_of_a_core(tmp_path: Path) -> None:
    """200 machines and 5,000 pods, from another process; looked at every five seconds."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cluster_api", "200", "5000", stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    )
    try:
        assert server.stdout is not None
        api = ClusterApi()
        api.url = (await asyncio.wait_for(server.stdout.readline(), 60)).decode().strip()
        desk = Desk()
        agent = agent_of(api, desk, tmp_path)
        await agent.read()
        began = time.process_time()
        for _ in range(3):
            await agent.read()
            await agent.register()
        seconds = (time.process_time() - began) / 3
        await agent.stop()
    finally:
        server.kill()
        await server.wait()
    print(f"{seconds:.3f} s of processor time a look")
    assert len(desk.nodes) == 200 and desk.nodes["machine-0"].cpu_millis == 16_000 - 25 * 100
    assert seconds < 0.5
