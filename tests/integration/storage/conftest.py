"""Servers that a test may break, stores on them, and a gateway in front of fakes whose clients reach the store."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from libs.rpc import IdentitySettings, PeerSettings, Server, Verifier, generate_key
from libs.storage import StorageSettings
from services.gateway.fakes import Behind
from services.gateway.main import ControlPlane
from services.gateway.settings import GatewaySettings
from tests.s3 import S3Server, minio_server


@pytest.fixture(scope="module")
def own_minio() -> Iterator[S3Server]:
    """Shared with nobody outside of a module."""
    with minio_server() as server:
        yield server


@dataclass
class Served:
    """A gateway at `url`, what is behind it, and where its artifacts are."""

    url: str
    behind: Behind
    settings: StorageSettings


@pytest.fixture(params=["minio", "versitygw"])
def reached(request: pytest.FixtureRequest) -> StorageSettings:
    """Of a server that clients reach."""
    settings: StorageSettings = request.getfixturevalue(request.param).settings()
    return settings


@pytest.fixture
async def served(reached: StorageSettings, tmp_path: Path) -> AsyncIterator[Served]:
    private, public = generate_key()
    async with AsyncExitStack() as stack:
        behind = Behind()
        server = Server(f"unix:{tmp_path}/s", behind.registrations(), verifier=Verifier(public))
        await server.start()
        stack.push_async_callback(server.stop, 0)
        peers = PeerSettings(**dict.fromkeys(PeerSettings.model_fields, server.address))
        identity = IdentitySettings(private_key=SecretStr(private))
        gateway = ControlPlane(GatewaySettings(port=0, peers=peers, identity=identity, storage=reached))
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield Served(gateway.address, behind, reached)
