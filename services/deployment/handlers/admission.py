"""Before an endpoint is stored: what others know of its model, the nodes and the quota. Awaits the network, outside of units."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from lepton.accounts.v1.accounts_service_pb2 import ReleaseQuotaRequest, ReserveQuotaRequest
from lepton.compute.v1.compute_service_pb2 import ListNodesRequest
from lepton.training.v1.training_service_pb2 import GetModelVersionRequest
from libs import telemetry
from libs.db import Database
from libs.errors import AppError, Conflict, Invalid, Violation
from libs.rpc import Client
from services.deployment import repository, wire
from services.deployment.domain.reference import parse_reference
from services.deployment.domain.resources import Needs, Room, why_never
from services.deployment.handlers.served import Served
from services.deployment.tables import PendingReservation

log = structlog.get_logger()

METRIC = "endpoints"


@dataclass(frozen=True)
class Peers:
    """Clients of the services that this one asks."""

    accounts: Client
    compute: Client
    training: Client
    data: Client


async def find_model(peers: Peers, reference: str) -> Served:
    """The model version that "name" or "name@n" means now. Raises NotFound, Invalid, Conflict."""
    name, number = parse_reference(reference)
    version = await peers.training.GetModelVersion(GetModelVersionRequest(name=name, number=number))
    if not version.files:
        raise Conflict(f"model version {version.model}@{version.number} has no files: it cannot be served")
    return Served(version.model, version.number, wire.files_of(version))


async def admit(peers: Peers, reference: str, needs: Needs) -> Served:
    """The model version, once it is sure that some node could hold a replica of it."""
    served, found = await asyncio.gather(find_model(peers, reference), rooms(peers))
    if never := why_never(served.complete(needs), found):
        raise Invalid.of([Violation("resources", never)], code="invalid_spec")
    return served


async def rooms(peers: Peers) -> list[Room]:
    """All that each node has; none where compute does not say: it will, when it is asked for an allocation."""
    try:
        return [wire.room_of(node) for node in (await peers.compute.ListNodes(ListNodesRequest(page_size=1000), timeout=2)).nodes]
    except AppError as error:
        log.warning("nodes_unknown", error=str(error))
        return []


@asynccontextmanager
async def reserved(database: Database, peers: Peers, workspace: str, name: str) -> AsyncIterator[None]:
    """Quota is taken before the block, which stores the endpoint, and given back if it raises.

    The intention is stored first: a process that dies in between leaves a row by which the reconciler gives the quota back.
    """
    async with database.unit() as unit:
        await repository.delete_reservation(unit.session, workspace, name)
        await unit.insert(PendingReservation(workspace=workspace, endpoint=name, create_time=time.time()))
    try:
        request = ReserveQuotaRequest(workspace=workspace, metric=METRIC, reservation=reservation(workspace, name), amount=1)
        await peers.accounts.ReserveQuota(request)
        yield
    except BaseException:
        try:
            await give_back(database, peers, workspace, name)
        except AppError as error:
            log.warning("quota_release_put_off", endpoint=name, error=str(error))
        raise


async def give_back(database: Database, peers: Peers, workspace: str, name: str) -> None:
    """Releases the quota of a name that no endpoint has."""
    # In a unit, not a read: one whose commit was not heard of has ended, either way, when this one begins.
    async with database.unit() as unit:
        stands = await repository.find_endpoint(unit.session, workspace, name) is not None
    if not stands:
        await peers.accounts.ReleaseQuota(ReleaseQuotaRequest(workspace=workspace, reservation=reservation(workspace, name)))
    async with database.unit() as unit:
        await repository.delete_reservation(unit.session, workspace, name)


def reservation(workspace: str, name: str) -> str:
    """The name that accounts knows the endpoint's quota by, and releases when the endpoint is deleted."""
    return f"endpoints/{workspace}/{name}"


def traceparent() -> str:
    """The current trace, or a new one."""
    return telemetry.inject().get("traceparent") or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
