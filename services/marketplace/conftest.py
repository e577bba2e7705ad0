"""The marketplace behind a socket, and what its tests do with it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from lepton.common.v1.resource_pb2 import Money
from lepton.deployment.v1.endpoint_pb2 import Endpoint
from lepton.marketplace.v1 import listing_pb2
from lepton.marketplace.v1 import marketplace_service_pb2 as pb
from lepton.marketplace.v1.marketplace_service_pb2_grpc import MarketplaceServiceStub, add_MarketplaceServiceServicer_to_server
from libs.db import Database
from libs.db.infrastructure import outbox
from libs.errors import NotFound
from libs.rpc import Call, Client, Server, Signer, Verifier, acting, current_call, generate_key
from libs.testing import FakeClock, as_member, migrated_database
from services.marketplace.servicer import MarketplaceServicer

PRIVATE, PUBLIC = generate_key()
CARD = "---\nlicense: mit\n---\n# Check\n"


class Deployment:
    """Knows one endpoint of acme, and one of globex."""

    async def GetEndpoint(self, request: Any) -> Endpoint:
        if (current_call().identity.workspace, request.name) not in (("acme", "wdbc"), ("globex", "theirs")):
            raise NotFound.of("endpoint", request.name, ["wdbc"] if current_call().identity.workspace == "acme" else [])
        return Endpoint(name=request.name)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with migrated_database("services.marketplace") as database:
        yield database


@pytest.fixture
async def market(tmp_path: Path, database: Database, clock: FakeClock) -> AsyncIterator[Client]:
    servicer = MarketplaceServicer(database, Deployment(), clock)
    server = Server(f"unix:{tmp_path}/s", [(servicer, add_MarketplaceServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    await server.start()
    client = Client(MarketplaceServiceStub, server.address, Signer(PRIVATE, "gateway"))
    yield client
    await client.close()
    await server.stop(0)


def price(micros: int = 2000) -> listing_pb2.Price:
    return listing_pb2.Price(per_row=Money(currency="USD", micros=micros))


def listing(slug: str = "breast-check", **more: Any) -> pb.CreateListingRequest:
    return pb.CreateListingRequest(**{"slug": slug, "title": "Breast check", "card": CARD, "endpoint": "wdbc", "price": price(), **more})


async def publish(market: Client, **more: Any) -> listing_pb2.Listing:
    with as_member("acme"):
        return await market.CreateListing(listing(**more))


async def subscribe(market: Client, workspace: str = "buyer") -> listing_pb2.Subscription:
    with as_member(workspace):
        return await market.Subscribe(pb.SubscribeRequest(slug="breast-check"))


async def record(market: Client, batch: str, *records: tuple[str, int]) -> None:
    with acting(Call()):
        messages = [pb.InvocationRecord(subscription=id, requests=1, rows=rows) for id, rows in records]
        await market.RecordInvocations(pb.RecordInvocationsRequest(batch_id=batch, records=messages))


async def events(database: Database, kind: type[Any]) -> list[Any]:
    async with database.read() as session:
        rows = (await session.execute(select(outbox).order_by(outbox.c.position))).all()
    return [kind.FromString(row.data) for row in rows if row.headers["ce_type"] == kind.DESCRIPTOR.full_name]
