"""Composition root of the compute service."""

from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub, add_ComputeServiceServicer_to_server
from libs.db import Database
from libs.events import EventLog
from libs.lifecycle import Component, Lifecycle, Loop
from libs.service import Kit, command
from services.compute import repository
from services.compute.agent import NodeAgent
from services.compute.gauges import room_gauges
from services.compute.handlers import Scheduler
from services.compute.servicer import ComputeServicer
from services.compute.settings import Settings

SWEEP_SECONDS = 1.0


def build(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """The service: API and the sweep that takes back what nobody renews."""
    kit = Kit("compute", "services.compute", settings, event_log)
    scheduler = Scheduler(patience_seconds=settings.patience_seconds)

    async def sweep() -> None:
        if await _something_is_due(kit.database, scheduler, settings.node_lease_seconds):
            async with kit.database.unit() as unit:
                await scheduler.expire(unit, node_lease_seconds=settings.node_lease_seconds)

    servicer = ComputeServicer(kit.database, scheduler)
    return kit.service(
        [(servicer, add_ComputeServiceServicer_to_server)],
        components=[Loop("compute-sweep", sweep, interval=SWEEP_SECONDS), room_gauges(kit.database)],
    )


def build_agent(settings: Settings) -> Component:
    """What runs on every node beside its workers, or once for all machines of a cluster."""
    kit = Kit("node", "services.compute", settings)
    client = kit.client(ComputeServiceStub, "compute")
    if settings.launcher.in_cluster:
        # Where it is needed only: its package takes 21 MB.
        from services.compute.cluster import ClusterAgent

        return ClusterAgent(client, settings)
    return NodeAgent(client, settings)


async def _something_is_due(database: Database, scheduler: Scheduler, node_lease_seconds: float) -> bool:
    """Whether the sweep would change anything: looking costs no write."""
    async with database.read() as session:
        granted, nodes = await repository.granted(session), await repository.nodes(session)
    scheduler.swept()
    return any(map(scheduler.is_over, granted)) or any(scheduler.is_lost(node, node_lease_seconds) for node in nodes)


if __name__ == "__main__":
    command("compute", "services.compute", Settings(), build)
