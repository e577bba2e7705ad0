"""Batch predictions: made, run part by part, registered once, ended. What a worker writes under a lease that was lost changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.db import Unit
from libs.errors import AppError, Conflict, Transient
from services.deployment import repository, wire
from services.deployment.domain.batch import MAX_FAILURES, BatchState, Part
from services.deployment.tables import BatchPrediction, PredictedPart

MAX_OPEN = 100


class LeaseLost(Conflict):
    """Another worker has it, or it ended."""

    default_code = "stale"


@dataclass(frozen=True)
class Lease:
    """A worker's right to write about a batch prediction."""

    workspace: str
    id: str
    token: int


# By members


async def begin_batch(unit: Unit, batch: BatchPrediction) -> None:
    """Stores it before its quota is taken; nobody sees it until `confirm_batch`."""
    if await repository.count_open_batches(unit.session, batch.workspace) >= MAX_OPEN:
        raise Conflict(f"{MAX_OPEN} batch predictions of this workspace have not ended; wait for one, or cancel it")
    await unit.insert(batch)


async def confirm_batch(unit: Unit, *, workspace: str, id: str) -> BatchPrediction:
    batch = await repository.find_batch(unit.session, workspace, id, lock=True)
    if batch is None:
        raise Transient("making the batch prediction took too long; try again")
    batch.state, batch.reason = BatchState.QUEUED, "waits for an allocation"
    return batch


async def withdraw_batch(unit: Unit, *, workspace: str, id: str) -> None:
    """Removes one that was not made; its quota must have been given back."""
    batch = await repository.find_batch(unit.session, workspace, id, lock=True)
    if batch is not None and batch.state == BatchState.RESERVING:
        await unit.session.delete(batch)


async def cancel_batch(unit: Unit, *, workspace: str, id: str, now: float) -> BatchPrediction:
    """Asked again it answers the same; raises Conflict for one that ended otherwise, or is as good as ended."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    state = BatchState(batch.state)
    if state in (BatchState.CANCELLING, BatchState.CANCELLED):
        return batch
    if state.ended:
        raise Conflict(f"batch prediction {id} has {state} already; there is nothing to cancel")
    if state is BatchState.REGISTERING:
        raise Conflict(f"batch prediction {id} is done, and its dataset version is being made; delete that instead")
    if state is BatchState.QUEUED:
        await _end(unit, batch, BatchState.CANCELLED, "cancelled before it ran", now)
    else:
        batch.state, batch.reason = BatchState.CANCELLING, "cancel was asked for; its process is being ended"
    return batch


# By the planner


async def note_allocation(unit: Unit, *, workspace: str, id: str, allocation_id: str, node: str, reason: str) -> None:
    """Where its allocation stands; one that ended meanwhile gives it back."""
    batch = await repository.find_batch(unit.session, workspace, id, lock=True)
    if batch is None:
        return
    state = BatchState(batch.state)
    if state is BatchState.QUEUED:
        batch.place(allocation_id, node)
        batch.reason = reason
    elif state.ended and not batch.allocation_id:
        batch.place(allocation_id, "")


async def refuse_batch(unit: Unit, *, workspace: str, id: str, error: AppError, now: float) -> None:
    """It will never run, or never be registered."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    if batch.state in (BatchState.QUEUED, BatchState.REGISTERING):
        await _fail(unit, batch, error, now)


async def bury(unit: Unit, *, workspace: str, id: str, now: float, known_dead: bool = False) -> None:
    """Its worker has not been heard of for the lease's time: the next one goes on after the last part."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    if batch.lease_holder and (known_dead or batch.lease_expires <= now):
        await _leave(unit, batch, "its worker was lost; the next one goes on", now, failed=True)


async def finish_cancel(unit: Unit, *, workspace: str, id: str, now: float) -> None:
    """Nobody has a process of it."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    if batch.state == BatchState.CANCELLING and not batch.lease_holder:
        await _end(unit, batch, BatchState.CANCELLED, "cancelled", now)


async def finish_batch(unit: Unit, *, workspace: str, id: str, now: float) -> None:
    """Its dataset version is ready."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    if batch.state == BatchState.REGISTERING:
        await _end(unit, batch, BatchState.SUCCEEDED, f"made {batch.output}@{batch.output_version}", now)


async def note_released(unit: Unit, *, workspace: str, id: str) -> None:
    """What it held was given back."""
    batch = await repository.get_batch(unit.session, workspace, id, lock=True)
    if BatchState(batch.state).ended:
        batch.place("", "")
        batch.quota_held = False


async def on_allocation_lost(unit: Unit, *, workspace: str, allocation_id: str) -> None:
    """Compute took it back. A live worker hears so when it renews."""
    batch = await repository.batch_of_allocation(unit.session, workspace, allocation_id)
    if batch is not None and not batch.lease_holder:
        batch.place("", "")


# By workers


async def claim(unit: Unit, *, workspace: str, id: str, node: str, holder: str, expires: float, now: float) -> BatchPrediction | None:
    """None where it does not wait for a worker on `node` (empty: on any), or no longer."""
    batch = await repository.find_batch(unit.session, workspace, id, lock=True)
    if batch is None or batch.state != BatchState.QUEUED or not batch.node or node not in ("", batch.node) or batch.not_before > now:
        return None
    batch.claim(holder, expires, now)
    return batch


async def renew(unit: Unit, lease: Lease, expires: float) -> bool:
    """Whether it is still wanted."""
    batch = await _held(unit, lease)
    batch.lease_expires = expires
    return batch.state == BatchState.RUNNING


async def note_part(unit: Unit, lease: Lease, part: Part, *, digest: str, size: int, expires: float, now: float) -> BatchPrediction:
    """A part lies in the store: its rows are done, and told to be billed, in this transaction. A second telling is refused by the key."""
    batch = await _held(unit, lease)
    row = PredictedPart(batch_prediction_id=batch.id, number=part.number, workspace=batch.workspace, digest=digest, size=size)
    await unit.insert(row, taken=LeaseLost(f"part {part.number} of batch prediction {batch.id} was made by another worker"))
    batch.rows_done += part.rows
    batch.failures, batch.lease_expires = 0, expires
    if batch.state == BatchState.RUNNING:
        batch.reason = "predicts"
    await unit.emit(wire.part_served(batch, part, now))
    return batch


async def note_registered(unit: Unit, lease: Lease, *, number: int) -> None:
    """Data makes the version; the planner looks whether it is ready."""
    batch = await _held(unit, lease)
    batch.output_version = number
    batch.state, batch.reason = BatchState.REGISTERING, f"{batch.output}@{number} is being made"
    batch.lease_holder, batch.lease_expires = "", 0.0


async def put_back(unit: Unit, lease: Lease, reason: str, now: float, *, failed: bool, evicted: bool = False, pause: float = 0.0) -> None:
    """The process ended before all parts were there; where it `failed`, not too often."""
    batch = await _held(unit, lease)
    if evicted:
        batch.place("", "")
    await _leave(unit, batch, reason, now, failed=failed, pause=pause)


async def fail(unit: Unit, lease: Lease, error: AppError, now: float) -> None:
    """Another process would end the same."""
    batch = await _held(unit, lease)
    if batch.state == BatchState.CANCELLING:
        await _end(unit, batch, BatchState.CANCELLED, "cancelled", now)
    else:
        await _fail(unit, batch, error, now)


async def _held(unit: Unit, lease: Lease) -> BatchPrediction:
    batch = await repository.find_batch(unit.session, lease.workspace, lease.id, lock=True)
    if batch is None or batch.lease_token != lease.token or not batch.lease_holder:
        raise LeaseLost(f"another worker has batch prediction {lease.id}, or it ended")
    return batch


async def _leave(unit: Unit, batch: BatchPrediction, reason: str, now: float, *, failed: bool, pause: float = 0.0) -> None:
    batch.put_back(reason, now, failed=failed, pause=pause)
    if batch.failures > MAX_FAILURES:
        await _fail(unit, batch, AppError(f"its process ended {batch.failures} times in a row: {reason}", code="process_failed"), now)
    elif BatchState(batch.state).ended:
        await repository.delete_parts(unit.session, batch)


async def _fail(unit: Unit, batch: BatchPrediction, error: AppError, now: float) -> None:
    problem: Mapping[str, Any] = error.as_dict()
    batch.fail(dict(problem), now)
    await repository.delete_parts(unit.session, batch)


async def _end(unit: Unit, batch: BatchPrediction, state: BatchState, reason: str, now: float) -> None:
    batch.end(state, reason, now)
    await repository.delete_parts(unit.session, batch)
