"""Between the contract's messages and the rows, and the events of the deployment service."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton.common.v1.resource_pb2 import Accelerator, Resources
from lepton.compute.v1.node_pb2 import Node
from lepton.data.v1 import data_service_pb2, dataset_pb2
from lepton.deployment.v1 import batch_prediction_pb2, deployment_service_pb2, endpoint_pb2, events_pb2
from lepton.training.v1 import model_pb2
from lepton.training.v1.model_pb2 import ModelVersion
from libs.errors import AppError, Invalid, Violation
from libs.events import Event
from libs.rpc import to_problem
from libs.rpc.names import enum_name_by_number, enum_number_by_name
from services.deployment.domain.batch import Column, Field, Part
from services.deployment.domain.resources import Needs, Room
from services.deployment.domain.rollout import Rollout
from services.deployment.domain.scaling import Load, Scaling
from services.deployment.domain.states import ACTIVE, LIVE, ReplicaState
from services.deployment.tables import BatchPrediction, Endpoint, PredictedPart, Replica, Revision, ScalingDecision

_ENDPOINT_STATES = enum_number_by_name(endpoint_pb2.EndpointState.DESCRIPTOR)
_REPLICA_STATES = enum_number_by_name(endpoint_pb2.ReplicaState.DESCRIPTOR)
_REVISION_STATES = enum_number_by_name(endpoint_pb2.RevisionState.DESCRIPTOR)
_BATCH_STATES = enum_number_by_name(batch_prediction_pb2.BatchPredictionState.DESCRIPTOR)
_FIELD_TYPES = enum_name_by_number(model_pb2.FieldType.DESCRIPTOR)
_COLUMN_TYPES = enum_name_by_number(dataset_pb2.ColumnType.DESCRIPTOR)
_COLUMN_NUMBERS = enum_number_by_name(dataset_pb2.ColumnType.DESCRIPTOR)
_ACCELERATORS = enum_name_by_number(Accelerator.DESCRIPTOR)
_ACCELERATOR_NUMBERS = enum_number_by_name(Accelerator.DESCRIPTOR)


@dataclass(frozen=True)
class Routes:
    """Where an endpoint answers: percents of the requests by revision, and who gets copies of them (0: nobody)."""

    model: str
    replicas: Sequence[Replica]
    percents: Mapping[int, int]
    shadow: int = 0


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


def scaling_of(request: deployment_service_pb2.CreateEndpointRequest | deployment_service_pb2.UpdateEndpointRequest) -> Scaling | None:
    """As asked for, with defaults; None where nothing is. Raises Invalid where it is asked for twice, or the bounds cross."""
    if not request.HasField("scaling"):
        return Scaling(request.replicas, request.replicas) if request.HasField("replicas") else None
    if request.HasField("replicas"):
        raise Invalid.of([Violation("replicas", "is short for scaling; give one of the two")])
    given, default = request.scaling, Scaling()
    least = given.min_replicas if given.HasField("min_replicas") else default.least
    most = given.max_replicas if given.HasField("max_replicas") else max(least, 1)
    if most < least:
        raise Invalid.of([Violation("scaling.max_replicas", f"must be at least min_replicas, {least}; got {most}")])
    return Scaling(
        least,
        most,
        given.target_in_flight if given.HasField("target_in_flight") else default.target_in_flight,
        given.idle_seconds if given.HasField("idle_seconds") else default.idle_seconds,
    )


def scaling_message(scaling: Scaling) -> endpoint_pb2.Scaling:
    return endpoint_pb2.Scaling(
        min_replicas=scaling.least,
        max_replicas=scaling.most,
        target_in_flight=scaling.target_in_flight,
        idle_seconds=int(scaling.idle_seconds),
    )


def rollout_of(message: endpoint_pb2.Rollout) -> Rollout:
    """With defaults. Raises Invalid where its steps do not grow to 100."""
    default = Rollout()
    given = {field.name: value for field, value in message.ListFields() if field.name != "canary_percents"}
    percents = tuple(message.canary_percents) or default.percents
    rollout = replace(default, percents=percents, **given)
    rollout.require_steps()
    return rollout


def endpoint_message(endpoint: Endpoint, replicas: Iterable[Replica]) -> endpoint_pb2.Endpoint:
    """`replicas`: its live ones."""
    message = endpoint_pb2.Endpoint(
        name=endpoint.name,
        workspace=endpoint.workspace,
        model=endpoint.reference,
        replicas=endpoint.replicas,
        ready_replicas=sum(r.state == ReplicaState.READY and r.revision == endpoint.revision for r in replicas),
        state=_ENDPOINT_STATES[endpoint.shown_state],  # type: ignore[arg-type]
        reason=endpoint.reason,
        error=to_problem(AppError.from_dict(endpoint.error)) if endpoint.error else None,
        resources=resources_message(endpoint.needs),
        revision=endpoint.revision,
        scaling=scaling_message(endpoint.scaling),
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
        revision=replica.revision,
    )
    message.create_time.FromNanoseconds(int(replica.create_time * 1e9))
    if replica.ready_time is not None:
        message.ready_time.FromNanoseconds(int(replica.ready_time * 1e9))
    return message


def revision_message(revision: Revision, replicas: Iterable[Replica], p95_seconds: float) -> endpoint_pb2.Revision:
    """`replicas`: the endpoint's live ones."""
    own = [replica for replica in replicas if replica.revision == revision.number and replica.state in LIVE]
    starting = next((replica.reason for replica in own if replica.state == ReplicaState.STARTING), "")
    message = endpoint_pb2.Revision(
        number=revision.number,
        model=revision.reference,
        state=_REVISION_STATES[revision.state],  # type: ignore[arg-type]
        percent=revision.percent,
        replicas=len(own),
        ready_replicas=sum(replica.state == ReplicaState.READY for replica in own),
        reason=revision.reason or starting,
        requests=revision.requests,
        errors=revision.errors,
        mean_seconds=revision.served.mean_seconds,
        p95_seconds=p95_seconds,
        shadow_compared=revision.shadow_compared,
        shadow_differing=revision.shadow_differing,
    )
    message.create_time.FromNanoseconds(int(revision.create_time * 1e9))
    return message


def endpoint_scaling_message(
    endpoint: Endpoint, replicas: Iterable[Replica], load: Load, decisions: Sequence[ScalingDecision]
) -> endpoint_pb2.EndpointScaling:
    """`replicas`: its live ones; `decisions`: newest first."""
    active = [replica for replica in replicas if replica.state in ACTIVE]
    ready = sum(replica.state == ReplicaState.READY for replica in active)
    message = endpoint_pb2.EndpointScaling(
        scaling=scaling_message(endpoint.scaling),
        replicas=endpoint.replicas,
        ready_replicas=ready,
        starting_replicas=len(active) - ready,
        in_flight=load.in_flight,
        waiting=load.waiting,
    )
    if load.last_request_time:
        message.last_request_time.FromNanoseconds(int(load.last_request_time * 1e9))
    for row in decisions:
        decision = message.decisions.add(from_replicas=row.from_replicas, to_replicas=row.to_replicas, why=row.why)
        decision.time.FromNanoseconds(int(row.time * 1e9))
    return message


def addresses_message(routes: Routes) -> deployment_service_pb2.ResolveEndpointResponse:
    """At least one replica."""
    addresses = [deployment_service_pb2.ReplicaAddress(id=r.id, url=r.url, token=r.token, revision=r.revision) for r in routes.replicas]
    shares = [deployment_service_pb2.RevisionShare(revision=number, percent=percent) for number, percent in routes.percents.items()]
    if routes.shadow:
        shares.append(deployment_service_pb2.RevisionShare(revision=routes.shadow, shadow=True))
    return deployment_service_pb2.ResolveEndpointResponse(model=routes.model, replicas=addresses, shares=shares)


def endpoint_created(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointCreated(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_updated(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointUpdated(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_ready(endpoint: Endpoint, replicas: Iterable[Replica]) -> Event:
    return Event.of(events_pb2.EndpointReady(endpoint=endpoint_message(endpoint, replicas)), key=_key(endpoint))


def endpoint_rolled_back(endpoint: Endpoint, taken_back: Revision, replicas: Iterable[Replica]) -> Event:
    message = events_pb2.EndpointRolledBack(
        endpoint=endpoint_message(endpoint, replicas), model=taken_back.reference, revision=taken_back.number
    )
    return Event.of(message, key=_key(endpoint))


def endpoint_deleted(endpoint: Endpoint) -> Event:
    return Event.of(events_pb2.EndpointDeleted(workspace=endpoint.workspace, endpoint=endpoint.name), key=_key(endpoint))


def predictions_served(record: deployment_service_pb2.PredictionRecord) -> Event:
    message = events_pb2.PredictionsServed(
        workspace=record.workspace,
        endpoint=record.endpoint,
        requests=record.requests,
        rows=record.rows,
        tokens_in=record.tokens_in,
        tokens_out=record.tokens_out,
    )
    message.time.FromNanoseconds(time.time_ns())
    return Event.of(message, key=f"{record.workspace}/{record.endpoint}")


def replicas_served(workspace: str, endpoint: str, seconds: float, now: float) -> Event:
    message = events_pb2.ReplicasServed(workspace=workspace, endpoint=endpoint, seconds=seconds)
    message.time.FromNanoseconds(int(now * 1e9))
    return Event.of(message, key=f"{workspace}/{endpoint}")


def fields_of(fields: Iterable[model_pb2.SignatureField]) -> list[Field]:
    return [Field(field.name, _FIELD_TYPES[field.type], field.optional, tuple(field.categories), tuple(field.shape)) for field in fields]


def columns_of(version: dataset_pb2.DatasetVersion) -> list[Column]:
    return [Column(column.name, _COLUMN_TYPES[column.type], column.nullable) for column in version.columns]


def splits_of(version: dataset_pb2.DatasetVersion) -> list[dict[str, Any]]:
    """As a row keeps them."""
    return [{"name": split.name, "digest": split.file.digest, "rows": split.rows} for split in version.splits]


def batch_message(row: BatchPrediction) -> batch_prediction_pb2.BatchPrediction:
    message = batch_prediction_pb2.BatchPrediction(
        id=row.id,
        workspace=row.workspace,
        model=row.reference,
        dataset=row.dataset,
        output=row.output,
        output_version=row.output_version,
        state=_BATCH_STATES[row.state],  # type: ignore[arg-type]
        reason=row.reason,
        rows=row.rows,
        rows_done=row.rows_done,
        resources=resources_message(row.needs),
        attempts=row.attempts,
    )
    if row.error:
        message.error.CopyFrom(to_problem(AppError.from_dict(row.error)))
    for name in ("create_time", "start_time", "end_time"):
        if (seconds := getattr(row, name)) is not None:
            getattr(message, name).FromNanoseconds(int(seconds * 1e9))
    return message


def derived_version(row: BatchPrediction, parts: Iterable[PredictedPart]) -> data_service_pb2.CreateDerivedDatasetVersionRequest:
    """The same for the same job, whenever it is asked for."""
    request = data_service_pb2.CreateDerivedDatasetVersionRequest(
        name=row.output, source=row.dataset, model=row.reference, batch_prediction=row.id
    )
    for column in row.columns:
        number = _COLUMN_NUMBERS[column["type"]]
        request.columns.add(name=column["name"], type=number, nullable=column["nullable"])
    planned = row.parts
    for part in parts:
        request.parts.add(digest=part.digest, size_bytes=part.size, path=planned[part.number].split)
    return request


def part_served(row: BatchPrediction, part: Part, now: float) -> Event:
    message = events_pb2.PredictionsServed(workspace=row.workspace, requests=1, rows=part.rows, batch_prediction=row.id)
    message.time.FromNanoseconds(int(now * 1e9))
    return Event.of(message, key=f"{row.workspace}/{row.id}")


def _key(endpoint: Endpoint) -> str:
    return f"{endpoint.workspace}/{endpoint.name}"
