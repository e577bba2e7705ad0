"""What this service does about others' facts."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from lepton.compute.v1.allocation_pb2 import ALLOCATION_STATE_EXPIRED
from lepton.compute.v1.events_pb2 import AllocationEnded, AllocationGranted
from libs.db import Unit
from libs.events import Handler, handles
from services.deployment.handlers import batches, replicas

_REPLICA, _BATCH = "endpoints/", "batch-predictions/"


def reactions(wake: Callable[[], Any], wake_batches: Callable[[], Any]) -> Mapping[type[Message], Handler]:
    """`wake` makes the reconciler and the node of this process look, `wake_batches` the planner of batch predictions."""

    async def on_allocation_granted(unit: Unit, event: AllocationGranted) -> None:
        # Who waits for it asks compute itself: what an event of the past says may be over.
        if event.allocation.holder.startswith(_REPLICA):
            unit.after_commit(wake)
        elif event.allocation.holder.startswith(_BATCH):
            unit.after_commit(wake_batches)

    async def on_allocation_ended(unit: Unit, event: AllocationEnded) -> None:
        allocation = event.allocation
        if allocation.state != ALLOCATION_STATE_EXPIRED:
            return
        if allocation.holder.startswith(_REPLICA):
            await replicas.on_allocation_lost(unit, workspace=allocation.workspace, allocation_id=allocation.id, now=time.time())
            unit.after_commit(wake)
        elif allocation.holder.startswith(_BATCH):
            await batches.on_allocation_lost(unit, workspace=allocation.workspace, allocation_id=allocation.id)
            unit.after_commit(wake_batches)

    return handles((AllocationGranted, on_allocation_granted), (AllocationEnded, on_allocation_ended))
