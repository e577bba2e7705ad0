"""What members do with endpoints."""

from dataclasses import asdict, dataclass
from typing import Any

from libs.db import Unit, new_id
from libs.errors import Conflict, Transient
from services.deployment import repository, wire
from services.deployment.domain.resources import Needs, complete
from services.deployment.domain.states import EndpointState
from services.deployment.handlers import replicas
from services.deployment.tables import Endpoint, Replica

ONNX, WEIGHTS = "model.onnx", "weights.safetensors"


@dataclass(frozen=True)
class Served:
    """A model version that was found: its name, its number, its package's files."""

    model: str
    number: int
    files: list[dict[str, Any]]

    def complete(self, needs: Needs) -> Needs:
        """What a replica of it gets where `needs` is asked for."""
        paths = {file["path"]: file["size_bytes"] for file in self.files}
        return complete(needs, onnx=ONNX in paths, weights_bytes=paths.get(WEIGHTS, 0))


async def require_free(unit: Unit, *, workspace: str, name: str) -> None:
    """Raises Conflict where the name is taken."""
    if await repository.find_endpoint(unit.session, workspace, name):
        raise _taken(name)


async def create_endpoint(
    unit: Unit, *, workspace: str, name: str, served: Served, count: int, needs: Needs, traceparent: str, now: float
) -> tuple[Endpoint, list[Replica]]:
    """Stores it, with the replicas that it wants; the reservation of its quota becomes its own."""
    if not await repository.delete_reservation(unit.session, workspace, name):
        raise Transient("making the endpoint took too long; try again")
    complete_needs = served.complete(needs)
    endpoint = Endpoint(
        id=new_id("ep"),
        workspace=workspace,
        name=name,
        model=served.model,
        model_version=served.number,
        files=served.files,
        replicas=count,
        resources=asdict(needs),
        accelerator=complete_needs.accelerator,
        device_count=complete_needs.count,
        cpu_millis=complete_needs.cpu_millis,
        memory_bytes=complete_needs.memory_bytes,
        state=EndpointState.STARTING if count else EndpointState.STOPPED,
        create_time=now,
        update_time=now,
        traceparent=traceparent,
    )
    await unit.insert(endpoint, taken=_taken(name))
    live = await replicas.reconcile(unit, endpoint, now=now)
    await unit.emit(wire.endpoint_created(endpoint, live))
    return endpoint, live


async def update_endpoint(
    unit: Unit, *, workspace: str, name: str, served: Served | None, count: int | None, traceparent: str, now: float
) -> tuple[Endpoint, list[Replica]]:
    """Another model version is another revision; the old one's replicas serve until the new one's are ready."""
    endpoint = await repository.get_endpoint(unit.session, workspace, name, lock=True)
    changed = False
    if served and (served.model, served.number) != (endpoint.model, endpoint.model_version):
        endpoint.model, endpoint.model_version, endpoint.files = served.model, served.number, served.files
        endpoint.need(served.complete(Needs(**endpoint.resources)))
        endpoint.revision += 1
        endpoint.traceparent = traceparent
        changed = True
    if count is not None and count != endpoint.replicas:
        endpoint.replicas = count
        changed = True
    if changed:
        endpoint.forgive()
        endpoint.update_time = now
    live = await replicas.reconcile(unit, endpoint, now=now)
    if changed:
        await unit.emit(wire.endpoint_updated(endpoint, live))
    return endpoint, live


async def delete_endpoint(unit: Unit, *, workspace: str, name: str, now: float) -> Endpoint:
    """Leaves a tombstone; its replicas end, and its quota is free once accounts hears of it."""
    endpoint = await repository.get_endpoint(unit.session, workspace, name, lock=True)
    endpoint.delete_time = now
    await replicas.reconcile(unit, endpoint, now=now)
    await unit.emit(wire.endpoint_deleted(endpoint))
    return endpoint


def _taken(name: str) -> Conflict:
    return Conflict(f"there is an endpoint '{name}' in this workspace already; update it, or choose another name", code="name_taken")
