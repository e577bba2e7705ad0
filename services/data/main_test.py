"""The service and its worker as they are put together, beside an accounts service that grants everything."""

import asyncio
import time
from pathlib import Path
from typing import Any

from lepton.accounts.v1 import accounts_service_pb2 as accounts_pb
from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceServicer, add_AccountsServiceServicer_to_server
from lepton.common.v1.resource_pb2 import Artifact
from lepton.data.v1 import data_service_pb2 as pb
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import DataServiceStub
from lepton.data.v1.events_pb2 import DatasetVersionReady
from libs.events import InMemoryEventLog, topic_of
from libs.rpc import Client, Server, Signer, Verifier, acting_for
from libs.storage import open_store
from libs.testing import database_settings
from services.data.main import build, build_worker
from services.data.scene import PRIVATE, PUBLIC
from services.data.settings import Settings


class Generous(AccountsServiceServicer):
    async def ReserveQuota(self, request: Any, context: Any) -> accounts_pb.ReserveQuotaResponse:
        return accounts_pb.ReserveQuotaResponse(granted=request.amount)


async def test_service_and_worker(tmp_path: Path) -> None:
    accounts = Server(f"unix:{tmp_path}/accounts", [(Generous(), add_AccountsServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    settings = Settings(
        listen=f"unix:{tmp_path}/data",
        database=await database_settings(f"sqlite+aiosqlite:///{tmp_path}/data.db"),
        storage={"url": f"file://{tmp_path}/store"},
        identity={"private_key": PRIVATE},
        peers={"accounts": accounts.address},
        work_dir=str(tmp_path / "work"),
    )
    event_log = InMemoryEventLog()
    service, worker = build(settings, event_log), build_worker(settings, event_log)
    await accounts.start()
    await service.start()
    await worker.start()
    client = Client(DataServiceStub, settings.listen, Signer(PRIVATE, "gateway"))

    async def content() -> Any:
        yield b"a,b\n1,x\n2,y\n"

    stored = await open_store(settings.storage, "datasets").put(content())
    subscription = event_log.subscribe("test", [topic_of(DatasetVersionReady)])
    began = time.monotonic()
    with acting_for("acme"):
        request = pb.IngestContentRequest(name="small", content=Artifact(digest=stored.digest), file_name="small.csv", wait_seconds=20)
        version = await client.IngestContent(request, timeout=30)
    assert version.state == dataset_pb2.VERSION_STATE_READY
    assert time.monotonic() - began < 10
    received = []
    while not received:
        received = await subscription.poll(10, 1)
        await asyncio.sleep(0)
    assert [one.event.message() for one in received] == [DatasetVersionReady(version=version)]
    await client.close()
    await worker.stop()
    await service.stop()
    await accounts.stop(0)
    assert not list((tmp_path / "work").iterdir())
