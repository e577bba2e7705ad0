"""Puts the marketplace together."""

import time

from lepton.deployment.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from lepton.marketplace.v1.marketplace_service_pb2_grpc import add_MarketplaceServiceServicer_to_server
from libs.db import Database
from libs.events import EventLog
from libs.lifecycle import Lifecycle, Loop
from libs.service import Kit, command
from services.marketplace import repository
from services.marketplace.consumers import reactions
from services.marketplace.servicer import MarketplaceServicer
from services.marketplace.settings import Settings

# No gateway repeats a batch after so long.
BATCHES_KEPT_SECONDS = 30 * 86400.0


def build(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """The service."""
    kit = Kit("marketplace", "services.marketplace", settings, event_log)
    servicer = MarketplaceServicer(kit.database, kit.client(DeploymentServiceStub, "deployment"))

    async def sweep() -> None:
        await forget_batches(kit.database)

    loop = Loop("marketplace-sweep", sweep, interval=3600)
    return kit.service([(servicer, add_MarketplaceServiceServicer_to_server)], reactions(), [loop])


async def forget_batches(database: Database) -> None:
    """Deletes the memory of batches that nobody will repeat."""
    async with database.unit() as unit:
        await repository.forget_batches(unit.session, time.time() - BATCHES_KEPT_SECONDS)


if __name__ == "__main__":
    command("marketplace", "services.marketplace", Settings(), build)
