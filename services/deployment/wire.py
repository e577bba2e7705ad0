"""Between the contract's messages and the rows, and the events of the deployment service."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from lepton.common.v1.resource_pb2 import Accelerator, Resources
from lepton.compute.v1.node_pb2 import Node
from lepton.deployment.v1 import deployment_service_pb2, endpoint_pb2, events_pb2
from lepton.training.v1.model_pb2 import ModelVersion
from libs.errors import AppError
from libs.events import Event
from libs.rpc import to_problem
from libs.rpc.names import enum_name_by_number, enum_number_by_name
from services.deployment.domain.resources import Needs, Room
from services.deployment.domain.states import ReplicaState
from services.deployment.tables import Endpoint, Replica

_ENDPOINT_STATES = enum_number_by_name(endpoint_pb2.EndpointState.DESCRIPTOR)
_REPLICA_STATES = enum_number_by_name(endpoint_pb2.ReplicaState.DESCRIPTOR)
_ACCELERATORS = enum_name_by_number(Accelerator.DESCRIPTOR)
_ACCELERATOR_NUMBERS = enum_number_by_name(Accelerator.DESCRIPTOR)


def needs_of(resources: Resources) -> Needs:
    """As asked for."""
    accelerator = "" if not resources.accelerator else _ACCELERATORS[resources.accelerator]
    return Needs(accelerator, resources.count, resources.memory_bytes, resources.cpu_millis)


def resources_message(needs: Needs) -> Resources:
    return Resources(
        accelerator=_ACCELERATOR_NUMBERS[needs.accelerator],  # type: ignore[arg-type]
        count=needs.count,
        memory_bytes=needs.memory_bytes,
        cpu_millis=needs.cpu_millis,
    )


def room_of(node: Node) -> Room:
    return Room(node.cpu_millis, node.memory_bytes, tuple(_ACCELERATORS[device.accelerator] for device in node.devices))


def files_of(version: ModelVersion) -> list[dict[str, Any]]:
    """The model package as a row keeps it."""
    return [{"path": file.path, "digest": file.digest, "size_bytes": file.size_bytes} for file in version.files]


def endpoint_message(endpoint: Endpoint, replicas: Iterable[Replica]) -> endpoint_pb2.Endpoint:
    """`replicas`: its live ones."""
    message = endpoint_pb2.Endpoint(
        name=endpoint.name,
        workspace=endpoint.workspace,
        model=endpoint.reference,
        replicas=endpoint.replicas,
        ready_replicas=sum(r.state == ReplicaState.READY and r.revision == endpoint.revision for r in replicas),
        state=_ENDPOINT_STATES[endpoint.state],  # type: ignore[arg-type]
        reason=endpoint.reason,
        error=to_problem(AppError.from_dict(endpoint.error)) if endpoint.error else None,
        resources=resources_message(endpoint.needs),
        revision=endpoint.revision,
    )
    message.create_time.FromNanoseconds(int(endpoint.create_time * 1e9))
    message.update_time.FromNanoseconds(int(endpoint.update_time * 1e9))
    return message


def replica_message(replica: Replica) -> endpoint_pb2.Replica:
    message = endpoint_pb2.Replica(
        id=replica.id,
        model=replica.model,
        state=_REPLICA_STATES[replica.state],  # type: ignore[arg-type]
        reason=replica.reason,
        node=replica.node,
    )
    message.create_time.FromNanoseconds(int(replica.create_time * 1e9))
    if replica.ready_time is not None:
        message.ready_time.FromNanoseconds(int(replica.ready_time * 1e9))
    return message


def addresses_message(replicas: Sequence[Replica]) -> deployment_service_pb2.ResolveEndpointResponse:
    """At least one replica."""
    addresses = [deployment_service_pb2.ReplicaAddress(id=r.id, url=r.url, token=r.token) for r in replicas]
    return deployment_service_pb2.ResolveEndpointResponse(model=replicas[0].model, replicas=addresses)


def endpoint_created(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointCreated(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_updated(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointUpdated(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_ready(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointReady(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_deleted(endpoint: Endpoint) -> Event:
    return Event.of(events_pb2.EndpointDeleted(workspace=endpoint.workspace, endpoint=endpoint.name), key=_key(endpoint))


def predictions_served(record: deployment_service_pb2.PredictionRecord) -> Event:
    message = events_pb2.PredictionsServed(workspace=record.workspace, endpoint=record.endpoint, requests=record.requests, rows=record.rows)
    message.time.FromNanoseconds(time.time_ns())
    return Event.of(message, key=f"{record.workspace}/{record.endpoint}")


def _key(endpoint: Endpoint) -> str:
    return f"{endpoint.workspace}/{endpoint.name}"
