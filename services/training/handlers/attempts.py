"""What the worker that holds a job's lease writes. Every function is fenced: under a lease that was lost it raises LeaseLost and changes
nothing."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton.common.v1 import resource_pb2
from lepton.training.v1 import job_pb2
from libs.db import Unit
from libs.errors import Conflict
from services.training import repository, wire
from services.training.domain.retry import Outcome, judge
from services.training.domain.states import State
from services.training.handlers.jobs import announce, count_attempt, say
from services.training.handlers.models import named_model
from services.training.tables import Checkpoint, ModelVersion, StoredFile, TrainingJob

KEPT_CHECKPOINTS = 2


class LeaseLost(Conflict):
    """Another worker holds the job, or it ended."""

    default_code = "stale"


@dataclass(frozen=True)
class Lease:
    """One worker's hold on one job; `token` fences it off from those before."""

    workspace: str
    job_id: str
    holder: str
    token: int


@dataclass(frozen=True)
class Metric:
    name: str
    step: int
    epoch: int
    value: float
    time: float


@dataclass(frozen=True)
class Line:
    stream: str
    text: str
    time: float


@dataclass
class Batch:
    """What a run told since the last write."""

    entries: list[Metric | Line] = field(default_factory=list)
    progress: dict[str, Any] | None = None
    phase: str = ""
    first_step_time: float | None = None

    @property
    def empty(self) -> bool:
        return not (self.entries or self.progress or self.phase or self.first_step_time)


@dataclass(frozen=True)
class Told:
    """What earlier attempts told, so that a resumed one does not tell it twice."""

    last_steps: Mapping[str, int]
    metrics: int
    lines: int


async def held(unit: Unit, lease: Lease) -> TrainingJob:
    """The job, locked; raises LeaseLost."""
    job = await repository.find_job(unit.session, lease.workspace, lease.job_id, lock=True)
    if job is None or (job.lease_holder, job.lease_token) != (lease.holder, lease.token):
        raise LeaseLost(f"another worker holds training job {lease.job_id}")
    return job


async def claim(
    unit: Unit, *, workspace: str, job_id: str, holder: str, seconds: float, now: float, node: str = ""
) -> tuple[Lease, TrainingJob] | None:
    """Takes a job that waits for a worker on `node` (empty: any); None when it does not, or no longer."""
    job = await repository.find_job(unit.session, workspace, job_id, lock=True)
    if job is None or job.state != State.STARTING or job.lease_holder or job.not_before > now:
        return None
    if node and job.node != node:
        return None  # A message reaches any worker; that of the node looks by itself.
    job.claim(holder, now + seconds, now)
    await announce(unit, job)
    return Lease(workspace, job_id, holder, job.lease_token), job


async def expire(unit: Unit, lease: Lease) -> None:
    """Its worker is known to be dead: nobody need wait for the lease to run out."""
    job = await held(unit, lease)
    job.lease_expires = 0.0


async def what_was_told(unit: Unit, lease: Lease) -> Told:
    session, where = unit.session, (lease.workspace, lease.job_id)
    points = [job_pb2.MetricPoint.FromString(event.message) for event in await repository.last_metric_events(session, *where)]
    return Told(
        {point.name: point.step for point in points},
        await repository.count_events(session, *where, "metric"),
        await repository.count_events(session, *where, "log"),
    )


async def record(unit: Unit, lease: Lease, batch: Batch, *, expires: float, seconds: float) -> TrainingJob:
    """Writes a batch and renews the lease."""
    job = await held(unit, lease)
    job.lease_expires, job.seconds = expires, seconds
    if batch.first_step_time and job.state == State.STARTING:
        job.move(State.RUNNING, "")
        job.first_step_time = job.first_step_time or batch.first_step_time
        await unit.emit(wire.job_started(job))
        await announce(unit, job)
    elif batch.phase and job.state == State.STARTING:
        job.reason = batch.phase.replace("\0", "\ufffd")
    for entry in batch.entries:
        if isinstance(entry, Line):
            await say(unit, job, entry.text, stream=entry.stream, at=entry.time)
        else:
            point = wire.metric_message(entry.name, entry.step, entry.epoch, entry.value, entry.time)
            await repository.append(unit, job, "metric", point.SerializeToString(), entry.name)
    if batch.progress:
        job.progress = batch.progress
    return job


async def save_checkpoint(unit: Unit, lease: Lease, *, epoch: int, step: int, files: Sequence[StoredFile]) -> list[str]:
    """Names a checkpoint that lies in the store; answers the digests that it replaced and nobody names any more."""
    job = await held(unit, lease)
    tally = job.tally.after_progress()
    job.crashes, job.losses = tally.crashes, tally.losses
    before = await repository.list_checkpoints(unit.session, lease.workspace, lease.job_id)
    # The best weights travel inside each checkpoint. An epoch that was done again replaces what it had been.
    dropped = [c for c in before if c.epoch >= epoch] + [c for c in before if c.epoch < epoch][KEPT_CHECKPOINTS - 1 :]
    digests = await repository.delete_checkpoints(unit.session, dropped)
    unit.session.add(Checkpoint(job_id=job.id, epoch=epoch, workspace=job.workspace, step=step, create_time=time.time()))
    unit.session.add_all(files)
    await unit.session.flush()
    return await repository.unnamed_of_all_workspaces(unit.session, "checkpoints", digests)


async def end_attempt(unit: Unit, lease: Lease, outcome: Outcome, how: str, *, seconds: float) -> TrainingJob:
    """The process ended without a result: another attempt, or the job's end."""
    job, now = await held(unit, lease), time.time()
    job.seconds = seconds
    if job.state == State.CANCELLING:
        job.end(State.CANCELLED, "cancelled", now)
    else:
        if outcome is Outcome.EVICTED:
            job.drop_allocation()
        verdict = judge(outcome, job.tally, how)
        if outcome is Outcome.HANDED_BACK:
            reason = "its worker was stopped; another one goes on"
        else:
            reason = f"attempt {job.attempts} ended: {how}; attempt {job.attempts + 1} is next"
        await say(unit, job, reason if not verdict.error else f"attempt {job.attempts} ended: {how}")
        job.take_verdict(verdict, now, reason)
    count_attempt(unit, State.CANCELLED if job.state == State.CANCELLED else outcome)
    await announce(unit, job)
    return job


async def end_job(unit: Unit, lease: Lease, error: Mapping[str, Any], *, seconds: float) -> TrainingJob:
    """The job failed, and another attempt would fail too."""
    job, now = await held(unit, lease), time.time()
    job.seconds = seconds
    if job.state == State.CANCELLING:
        job.end(State.CANCELLED, "cancelled", now)
    else:
        job.fail(dict(error), now)
    count_attempt(unit, job.state)
    await announce(unit, job)
    return job


async def register_model_version(
    unit: Unit,
    lease: Lease,
    *,
    package: Mapping[str, Any],
    result: Mapping[str, Any],
    files: Sequence[resource_pb2.Artifact],
    seconds: float,
) -> TrainingJob:
    """The job succeeded: model, version, events and end in one."""
    job, now = await held(unit, lease), time.time()
    job.seconds = seconds
    if job.state == State.CANCELLING:
        job.end(State.CANCELLED, "cancelled", now)
    else:
        job.metrics = finite_metrics(result)
        model = await named_model(unit, job.workspace, job.output_model, now)
        model.latest_version += 1
        message = wire.registered_version(job, model.latest_version, package, result, files, now)
        version = ModelVersion(
            workspace=job.workspace,
            model=model.name,
            number=model.latest_version,
            training_job=job.id,
            message=message.SerializeToString(),
        )
        await unit.insert(version)
        owned = {"owner": version.owner, "workspace": job.workspace, "purpose": "models"}
        unit.session.add_all(StoredFile(path=file.path, digest=file.digest, size=file.size_bytes, **owned) for file in files)
        job.model_version = f"{model.name}@{version.number}"
        job.end(State.SUCCEEDED, f"registered {job.model_version}", now)
        await unit.emit(wire.version_registered(message))
    count_attempt(unit, job.state)
    await announce(unit, job)
    return job


def finite_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Those figures of a result that are figures."""
    metrics = result.get("metrics")
    given = metrics.items() if isinstance(metrics, Mapping) else ()
    return {str(k)[:100]: float(v) for k, v in given if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)}
