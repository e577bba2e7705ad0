"""What this service does about others' facts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.message import Message

from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.events_pb2 import AllocationEnded, AllocationGranted
from lepton.deployment.v1.events_pb2 import EndpointCreated, EndpointDeleted, EndpointRolledBack, EndpointUpdated
from libs.db import Unit
from libs.events import Handler, handles
from services.training.handlers import jobs, models

_HOLDER = "training-jobs/"


def consumers(wake: Callable[[str], Any]) -> Mapping[type[Message], Handler]:
    """`wake` makes the reconciler look, at the job of that id in any case."""

    async def on_allocation_granted(unit: Unit, event: AllocationGranted) -> None:
        # The reconciler asks compute itself: what an event of the past says may be over.
        if event.allocation.holder.startswith(_HOLDER):
            unit.after_commit(partial(wake, _job_of(event.allocation.holder)))

    async def on_allocation_ended(unit: Unit, event: AllocationEnded) -> None:
        allocation = event.allocation
        if allocation.holder.startswith(_HOLDER) and allocation.state == allocation_pb2.ALLOCATION_STATE_EXPIRED:
            await jobs.on_allocation_lost(unit, workspace=allocation.workspace, allocation_id=allocation.id)
            unit.after_commit(partial(wake, _job_of(allocation.holder)))

    async def on_endpoint_created(unit: Unit, event: EndpointCreated) -> None:
        endpoint = event.endpoint
        await models.on_endpoint_changed(unit, workspace=endpoint.workspace, endpoint=endpoint.name, model=endpoint.model)

    async def on_endpoint_updated(unit: Unit, event: EndpointUpdated) -> None:
        endpoint = event.endpoint
        await models.on_endpoint_changed(unit, workspace=endpoint.workspace, endpoint=endpoint.name, model=endpoint.model)

    async def on_endpoint_rolled_back(unit: Unit, event: EndpointRolledBack) -> None:
        endpoint = event.endpoint
        await models.on_endpoint_changed(unit, workspace=endpoint.workspace, endpoint=endpoint.name, model=endpoint.model)

    async def on_endpoint_deleted(unit: Unit, event: EndpointDeleted) -> None:
        await models.on_endpoint_changed(unit, workspace=event.workspace, endpoint=event.endpoint, model="")

    return handles(
        (AllocationGranted, on_allocation_granted),
        (AllocationEnded, on_allocation_ended),
        (EndpointCreated, on_endpoint_created),
        (EndpointUpdated, on_endpoint_updated),
        (EndpointRolledBack, on_endpoint_rolled_back),
        (EndpointDeleted, on_endpoint_deleted),
    )


def _job_of(holder: str) -> str:
    """training-jobs/<id>/attempts/<number>"""
    return holder.split("/")[1]
