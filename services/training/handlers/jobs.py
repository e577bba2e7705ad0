"""Use cases of members about jobs, and of the reconciler about jobs without a live worker."""

import time

from libs.db import Unit
from libs.errors import AppError, Conflict
from libs.telemetry import counter
from services.training import repository, wire
from services.training.domain.retry import Outcome, judge
from services.training.domain.states import State
from services.training.tables import TrainingJob

GRANTED, QUEUED = "granted", "queued"
_attempts = counter("lepton_training_attempts_total", "Attempts of training jobs that have ended, by how.", ("outcome",))


def count_attempt(unit: Unit, outcome: str) -> None:
    """An attempt has ended, if this unit commits."""
    unit.after_commit(lambda: _attempts.add(1, outcome=outcome))


async def announce(unit: Unit, job: TrainingJob) -> None:
    """Tells watchers of the job's new state, and the other services of its end, after which nobody goes on from its checkpoints."""
    if State(job.state).ended:
        await unit.emit(wire.job_ended(job))
        checkpoints = await repository.list_checkpoints(unit.session, job.workspace, job.id)
        await repository.delete_checkpoints(unit.session, checkpoints)
    await repository.append(unit, job, "job", wire.job_message(job).SerializeToString())


async def say(unit: Unit, job: TrainingJob, text: str, *, stream: str = "platform", at: float | None = None) -> None:
    """Adds a line to the job's log."""
    line = wire.log_message(job.last_event + 1, stream, text, at or time.time())
    await repository.append(unit, job, "log", line.SerializeToString())


async def create_training_job(unit: Unit, job: TrainingJob) -> TrainingJob:
    await unit.insert(job)
    await unit.emit(wire.job_created(job))
    await announce(unit, job)
    if job.limited_by:
        limit = job.training["time_limit_seconds"]
        await say(unit, job, f"the time limit is {limit} s: so much is left of the plan's {job.limited_by}")
    return job


async def cancel_training_job(unit: Unit, *, workspace: str, job_id: str) -> TrainingJob:
    """Asked again it answers the same; raises Conflict for a job that ended otherwise."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    state = State(job.state)
    if state in (State.CANCELLING, State.CANCELLED):
        return job
    if state.ended:
        raise Conflict(f"training job {job_id} has {state} already; there is nothing to cancel")
    if state is State.QUEUED:
        job.end(State.CANCELLED, "cancelled before it started", time.time())
    else:
        job.move(State.CANCELLING, "cancel was asked for; its process is being ended")
    await announce(unit, job)
    return job


async def note_allocation(
    unit: Unit,
    *,
    workspace: str,
    job_id: str,
    attempt: int,
    allocation_id: str,
    state: str,
    reason: str,
    node: str,
    devices: list[int],
    nodes: list[str],
) -> bool:
    """Where the allocation for a job's next attempt stands; whether a worker may now take the job."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    if State(job.state).ended and not job.allocation_id:
        job.allocation_id = allocation_id  # It ended while compute was asked: the reconciler gives it back.
    if job.state != State.QUEUED or job.attempts + 1 != attempt:
        return False
    if state == GRANTED:
        job.grant(allocation_id, node, devices, nodes)
        await announce(unit, job)
        return True
    if state == QUEUED:
        changed = job.reason != reason
        job.allocation_id, job.reason = allocation_id, reason
        if changed:
            await announce(unit, job)
    elif job.allocation_id == allocation_id:
        job.drop_allocation()
    return False


async def on_allocation_lost(unit: Unit, *, workspace: str, allocation_id: str) -> TrainingJob | None:
    """Compute took the allocation back. A live worker sees that the row lacks it and hands the job back; else it is queued again now."""
    job = await repository.find_job_of_allocation(unit.session, workspace, allocation_id)
    if job is None:
        return None
    job.drop_allocation()
    if job.state == State.STARTING and not job.lease_holder:
        job.move(State.QUEUED, "its allocation ended before it was used; waits for another")
        await announce(unit, job)
    return job


async def refuse_job(unit: Unit, *, workspace: str, job_id: str, error: AppError) -> None:
    """Compute will never allocate what the job wants."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    if job.state == State.QUEUED:
        job.fail(error.as_dict(), time.time())
        await announce(unit, job)


async def bury_attempt(unit: Unit, *, workspace: str, job_id: str, now: float) -> TrainingJob | None:
    """The worker of a job has not been heard of for the lease time: another attempt, or the job's end."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    if not job.lease_holder or job.lease_expires > now:
        return None
    count_attempt(unit, Outcome.LOST)
    if job.state == State.CANCELLING:
        job.end(State.CANCELLED, "cancelled", now)
    else:
        await say(unit, job, f"attempt {job.attempts} was lost with its worker")
        job.take_verdict(judge(Outcome.LOST, job.tally), now, f"its worker was lost; attempt {job.attempts + 1} is next")
    await announce(unit, job)
    return job


async def finish_cancel(unit: Unit, *, workspace: str, job_id: str, now: float) -> None:
    """Cancel was asked for and nobody holds the job."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    if job.state == State.CANCELLING and (not job.lease_holder or job.lease_expires <= now):
        job.end(State.CANCELLED, "cancelled", now)
        await announce(unit, job)


async def forget_allocation(unit: Unit, *, workspace: str, job_id: str, allocation_id: str) -> None:
    """The allocation of an ended job was given back."""
    job = await repository.get_job(unit.session, workspace, job_id, lock=True)
    if job.allocation_id == allocation_id and State(job.state).ended:
        job.drop_allocation()
