"""A database with the first workspace in it, and the service behind a socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub, add_AccountsServiceServicer_to_server
from libs.db import Database
from libs.rpc import Client, Server, Signer, Verifier, generate_key
from libs.testing import FakeClock, migrated_database
from services.accounts.main import bootstrap
from services.accounts.servicer import AccountsServicer
from services.accounts.settings import Settings

PRIVATE, PUBLIC = generate_key()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings() -> Settings:
    return Settings(bootstrap_key=SecretStr("first-key"), workspaces_per_member=4)


@pytest.fixture
async def database(clock: FakeClock, settings: Settings) -> AsyncIterator[Database]:
    async with migrated_database("services.accounts") as database:
        await bootstrap(database, settings, clock=clock)
        yield database


@pytest.fixture
async def accounts(tmp_path: Path, database: Database, clock: FakeClock, settings: Settings) -> AsyncIterator[Client]:
    servicer = AccountsServicer(database, settings, clock)
    server = Server(f"unix:{tmp_path}/s", [(servicer, add_AccountsServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    await server.start()
    client = Client(AccountsServiceStub, server.address, Signer(PRIVATE, "gateway"))
    yield client
    await client.close()
    await server.stop(0)
