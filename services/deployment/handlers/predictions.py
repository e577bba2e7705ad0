"""Answered rows become facts that are billed."""

from collections.abc import Iterable

from lepton.deployment.v1.deployment_service_pb2 import PredictionRecord
from libs.db import Unit
from libs.errors import Transient
from services.deployment import repository, wire
from services.deployment.tables import PredictionBatch


async def record_predictions(unit: Unit, *, batch_id: str, records: Iterable[PredictionRecord], now: float) -> None:
    """Once a batch, however often it is told: the batch's name and its events are one transaction."""
    if await repository.is_recorded(unit.session, batch_id):
        return
    told_twice = Transient("the same batch is being recorded by another call; try again")
    await unit.insert(PredictionBatch(batch_id=batch_id, time=now), taken=told_twice)
    await unit.emit(*[wire.predictions_served(record) for record in records if record.rows or record.requests])
