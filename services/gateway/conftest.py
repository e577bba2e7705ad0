"""A gateway on a real port in front of the fakes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from libs.rpc import IdentitySettings, PeerSettings, Server, Verifier, generate_key
from libs.storage import InMemoryArtifactStore
from libs.telemetry import Span
from libs.telemetry.tracing import start_tracing
from services.gateway.fakes import Behind, Replica
from services.gateway.main import ControlPlane, Gateway
from services.gateway.settings import GatewaySettings, Limits

PRIVATE, PUBLIC = generate_key()
# Requests have trace ids; the spans go nowhere.
start_tracing("gateway", None)


class FakeTraces:
    def __init__(self) -> None:
        self.kept: list[Span] = []

    async def spans(self, trace_id: str) -> list[Span]:
        return [span for span in self.kept if span.trace_id == trace_id]


@dataclass
class World:
    """Everything that a test touches. `client` calls as the owner of acme, by the gateway, as every client does."""

    behind: Behind
    control: ControlPlane
    gateway: Gateway
    client: httpx.AsyncClient
    models: InMemoryArtifactStore
    datasets: InMemoryArtifactStore
    traces: FakeTraces
    replicas: list[Replica]
    services: Server

    async def start_services(self) -> None:
        """Again, at the same address."""
        self.services = _services(self.behind, self.services.address)
        await self.services.start()

    async def add_replica(self, name: str = "r1") -> Replica:
        replica = Replica(name, self.behind.log)
        await replica.start()
        self.replicas.append(replica)
        self.behind.deployment.replicas.append(replica.address)
        return replica


@pytest.fixture
def limits() -> Limits:
    """Overridden by tests that need others."""
    return Limits()


@pytest.fixture
def datasets() -> InMemoryArtifactStore:
    """As `limits`."""
    return InMemoryArtifactStore()


@pytest.fixture
def models() -> InMemoryArtifactStore:
    """As `limits`."""
    return InMemoryArtifactStore()


@pytest.fixture
async def world(tmp_path: Path, limits: Limits, datasets: InMemoryArtifactStore, models: InMemoryArtifactStore) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        behind = Behind()
        server = _services(behind, f"unix:{tmp_path}/s")
        await server.start()
        peers = PeerSettings(**dict.fromkeys(PeerSettings.model_fields, server.address))
        settings = GatewaySettings(
            port=0,
            grpc_port=0,
            socket=f"{tmp_path}/control",
            peers=peers,
            identity=IdentitySettings(private_key=SecretStr(PRIVATE)),
            limits=limits,
            prediction_block=10,
            predict_seconds=5,
        )
        traces = FakeTraces()
        control = ControlPlane(settings, traces=traces, datasets=datasets, models=models)
        await control.start()
        stack.push_async_callback(control.stop)
        own = {"socket": "", "control_url": control.address, "spool_dir": f"{tmp_path}/spool"}
        gateway = Gateway(settings.model_copy(update=own))
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        client = httpx.AsyncClient(base_url=gateway.address, headers={"authorization": "Bearer owner-key"}, timeout=30)
        await stack.enter_async_context(client)
        replicas: list[Replica] = []
        world = World(behind, control, gateway, client, models, datasets, traces, replicas, server)
        yield world
        for replica in replicas:
            await replica.stop()
    await world.services.stop(0)


def _services(behind: Behind, address: str) -> Server:
    return Server(address, behind.registrations(), verifier=Verifier(PUBLIC))
