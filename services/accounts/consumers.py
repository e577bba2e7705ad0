"""What others' facts change here: reservations end, use is written down. Knows other services by their events alone."""

from datetime import datetime
from decimal import Decimal

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lepton.compute.v1.events_pb2 import AllocationEnded
from lepton.data.v1.events_pb2 import DatasetDeleted, DatasetVersionFailed
from lepton.deployment.v1.events_pb2 import EndpointDeleted, PredictionsServed, ReplicasServed
from lepton.marketplace.v1.events_pb2 import ListingInvoked
from lepton.training.v1.events_pb2 import ModelDeleted, ModelVersionRegistered, TrainingJobEnded
from libs.db import Unit
from libs.events import Handler, current_event, handles
from services.accounts import handlers, repository
from services.accounts.domain.metering import device_seconds, metric_of, resource_of


def reactions(fee_percent: Decimal) -> dict[type[Message], Handler]:
    """Which fact does what; the platform keeps `fee_percent` of what publishers earn."""

    async def on_listing_invoked(unit: Unit, message: ListingInvoked) -> None:
        event = current_event()
        await handlers.record_listing_rows(
            unit,
            source=event.source,
            event_id=event.id,
            listing=message.listing,
            buyer=message.buyer,
            publisher=message.publisher,
            rows=message.rows,
            unit_price=message.unit_price.micros,
            fee_percent=fee_percent,
            time=_moment(message.time),
        )

    return handles(
        (AllocationEnded, on_allocation_ended),
        (PredictionsServed, on_predictions_served),
        (ReplicasServed, on_replicas_served),
        (ListingInvoked, on_listing_invoked),
        (TrainingJobEnded, on_training_job_ended),
        (EndpointDeleted, on_endpoint_deleted),
        (DatasetDeleted, on_dataset_deleted),
        (DatasetVersionFailed, on_dataset_version_failed),
        (ModelVersionRegistered, on_model_version_registered),
        (ModelDeleted, on_model_deleted),
    )


async def on_allocation_ended(unit: Unit, message: AllocationEnded) -> None:
    allocation, needs = message.allocation, message.allocation.resources
    event = current_event()
    await handlers.record_use(
        unit,
        source=event.source,
        # An allocation ends once, whatever its event is called.
        event_id=allocation.id or event.id,
        workspace=allocation.workspace,
        metric=metric_of(needs.accelerator),
        resource=resource_of(allocation.holder),
        quantity=(allocation.workers or 1)
        * device_seconds(message.seconds, accelerator=needs.accelerator, count=needs.count, cpu_millis=needs.cpu_millis),
        time=_moment(allocation.end_time),
    )


async def on_predictions_served(unit: Unit, message: PredictionsServed) -> None:
    for metric, quantity in (("predictions", message.rows), ("tokens_in", message.tokens_in), ("tokens_out", message.tokens_out)):
        await _record_use(unit, message, metric, quantity, of=_resource_of(message))
    if message.batch_prediction:
        name = f"batch-predictions/{message.workspace}/{message.batch_prediction}"
        await repository.use_up(unit.session, message.workspace, name, "predictions", message.rows)


def _resource_of(message: PredictionsServed) -> str:
    return f"batch-predictions/{message.batch_prediction}" if message.batch_prediction else f"endpoints/{message.endpoint}"


async def on_replicas_served(unit: Unit, message: ReplicasServed) -> None:
    await _record_use(unit, message, "replica_seconds", message.seconds, of=f"endpoints/{message.endpoint}")


async def _record_use(unit: Unit, message: PredictionsServed | ReplicasServed, metric: str, quantity: float, *, of: str) -> None:
    event = current_event()
    await handlers.record_use(
        unit,
        source=event.source,
        event_id=event.id,
        workspace=message.workspace,
        metric=metric,
        resource=of,
        quantity=quantity,
        time=_moment(message.time),
    )


async def on_training_job_ended(unit: Unit, message: TrainingJobEnded) -> None:
    await _end(unit, message.job.workspace, f"training-jobs/{message.job.workspace}/{message.job.id}")


async def on_endpoint_deleted(unit: Unit, message: EndpointDeleted) -> None:
    await _end(unit, message.workspace, f"endpoints/{message.workspace}/{message.endpoint}")


async def on_dataset_version_failed(unit: Unit, message: DatasetVersionFailed) -> None:
    version = message.version
    await _end(unit, version.workspace, f"datasets/{version.workspace}/{version.dataset}@{version.number}")


async def on_dataset_deleted(unit: Unit, message: DatasetDeleted) -> None:
    await _end_all(unit, message.workspace, f"datasets/{message.workspace}/{message.dataset}@")


async def on_model_version_registered(unit: Unit, message: ModelVersionRegistered) -> None:
    version = message.model_version
    await handlers.store_anyway(
        unit,
        workspace=version.workspace,
        name=f"models/{version.workspace}/{version.model}@{version.number}",
        amount=sum(file.size_bytes for file in version.files),
        taken=message.reservation,
        now=_told(),
    )


async def on_model_deleted(unit: Unit, message: ModelDeleted) -> None:
    await _end_all(unit, message.workspace, f"models/{message.workspace}/{message.model}@")


async def _end(unit: Unit, workspace: str, name: str) -> None:
    await repository.release(unit.session, workspace, name, asked_before=_told())


async def _end_all(unit: Unit, workspace: str, prefix: str) -> None:
    """What was stored is owed; a version that failed, or was never made, is not."""
    await handlers.settle_storage(unit, workspace=workspace, until=_told(), prefix=prefix, asked_before=_told())
    await repository.release_all(unit.session, workspace, prefix, asked_before=_told())


def _moment(time: Timestamp) -> float:
    """Seconds since 1970; where the message says no time, that of its event, so that a second telling means the same month."""
    return time.ToMicroseconds() / 1e6 if time.ByteSize() else _told()


def _told() -> float:
    return datetime.fromisoformat(current_event().time).timestamp()
