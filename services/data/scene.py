"""For tests: the service behind its own gRPC server, with a worker in the same process, everything in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from lepton.common.v1.resource_pb2 import Artifact
from lepton.data.v1 import data_service_pb2 as pb
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import DataServiceStub, add_DataServiceServicer_to_server
from libs.db import Database
from libs.db.infrastructure import outbox
from libs.errors import QuotaExceeded
from libs.events import Event
from libs.rpc import Client, Server, Signer, Verifier, acting_for, generate_key
from libs.storage import ArtifactStore, InMemoryArtifactStore
from libs.testing import migrated_database
from services.data.engine import process
from services.data.engine.limits import Limits
from services.data.handlers.making import Bench
from services.data.maker import Maker
from services.data.reconciler import Reconciler, Sweep
from services.data.servicer import DataServicer

PRIVATE, PUBLIC = generate_key()


@dataclass
class Accounts:
    """Stands in for the accounts service: reservations by name, and a limit."""

    limit: int = 1 << 40
    held: dict[str, int] = field(default_factory=dict)
    away: Exception | None = None

    async def ReserveQuota(self, request: Any) -> None:
        if self.away:
            raise self.away
        if request.reservation not in self.held and sum(self.held.values()) + request.amount > self.limit:
            raise QuotaExceeded("storage is used up; the plan pro has more", meta={"metric": request.metric})
        self.held.setdefault(request.reservation, request.amount)

    async def ReleaseQuota(self, request: Any) -> None:
        if self.away:
            raise self.away
        self.held.pop(request.reservation, None)


@dataclass
class Scene:
    """The service and what it stands on."""

    database: Database
    store: ArtifactStore
    accounts: Accounts
    client: Client
    maker: Maker
    reconciler: Reconciler
    sweep: Sweep

    async def put(self, content: bytes) -> Artifact:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        stored = await self.store.put(chunks())
        return Artifact(digest=stored.digest, size_bytes=stored.size)

    async def upload(
        self, name: str, content: bytes, file_name: str = "data.csv", *, wait: float = 20, key: str = "", workspace: str = "acme"
    ) -> dataset_pb2.DatasetVersion:
        request = pb.IngestContentRequest(name=name, content=await self.put(content), file_name=file_name, wait_seconds=wait)
        with acting_for(workspace):
            version: dataset_pb2.DatasetVersion = await self.client.IngestContent(request, timeout=60, idempotency_key=key)
        return version

    async def transform(
        self, name: str, *steps: dataset_pb2.TransformStep, version: int = 0, output: str = "", key: str = ""
    ) -> dataset_pb2.DatasetVersion:
        """Made, whatever it takes."""
        request = pb.CreateTransformRequest(name=name, version=version, output=output, steps=steps)
        with acting_for("acme"):
            made = await self.client.CreateTransform(request, idempotency_key=key)
            assert made.state == dataset_pb2.VERSION_STATE_PROCESSING
        return await self.settled(made.dataset, made.number)

    async def get(self, name: str, number: int, workspace: str = "acme") -> dataset_pb2.DatasetVersion:
        with acting_for(workspace):
            version: dataset_pb2.DatasetVersion = await self.client.GetDatasetVersion(pb.GetDatasetVersionRequest(name=name, number=number))
        return version

    async def settled(self, name: str, number: int) -> dataset_pb2.DatasetVersion:
        async def look() -> dataset_pb2.DatasetVersion | None:
            version = await self.get(name, number)
            return version if version.state != dataset_pb2.VERSION_STATE_PROCESSING else None

        return await until(look)

    async def events(self) -> list[Any]:
        """What the outbox holds, in order."""
        async with self.database.read() as session:
            rows = (await session.execute(select(outbox).order_by(outbox.c.position))).all()
        return [Event.from_headers(row.topic, row.key, row.headers, row.data).message() for row in rows]

    async def count(self, table: Any) -> int:
        async with self.database.read() as session:
            return len((await session.execute(select(table))).all())


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 30) -> Any:
    """The first answer that is something."""
    end = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def scene(
    folder: Path, *, url: str = "sqlite+aiosqlite://", store: ArtifactStore | None = None, engine: Any = process.run, works: bool = True
) -> AsyncIterator[Scene]:
    """`engine` stands in for the child process, `works`: the worker runs."""
    store = store or InMemoryArtifactStore()
    accounts: Any = Accounts()
    address = f"unix:{folder}/data.sock"
    client = Client(DataServiceStub, address, Signer(PRIVATE, "gateway"))
    async with migrated_database("services.data", url) as database:
        maker = Maker(database, store, folder / "work", Limits(), at_once=2, lease_seconds=1.0, run=engine)
        bench = Bench(folder / "work", store, Limits(), 2)
        servicer = DataServicer(database, store, accounts, bench, lambda key: maker.wake())
        server = Server(address, [(servicer, add_DataServiceServicer_to_server)], verifier=Verifier(PUBLIC))
        reconciler = Reconciler(database, accounts, lambda key: maker.wake(), interval=60)
        sweep = Sweep(database, store, discard_seconds=0.0, orphan_seconds=3600)
        await bench.start()
        await server.start()
        if works:
            await maker.start()
        yield Scene(database, store, accounts, client, maker, reconciler, sweep)
        await maker.stop()
        await client.close()
        await server.stop(0)
        await bench.stop()
