"""Every query of the service. What looks over all workspaces says so in its name."""

from collections.abc import Collection, Sequence

from sqlalchemy import case, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Unit
from libs.errors import NotFound
from services.training.domain.states import State
from services.training.tables import Checkpoint, JobEvent, Model, ModelVersion, PendingReservation, ServedModel, StoredFile, TrainingJob

_UNSETTLED = (State.QUEUED, State.STARTING, State.RUNNING, State.CANCELLING)


# Jobs


async def find_job(session: AsyncSession, workspace: str, job_id: str, *, lock: bool = False) -> TrainingJob | None:
    query = select(TrainingJob).where(TrainingJob.workspace == workspace, TrainingJob.id == job_id)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def get_job(session: AsyncSession, workspace: str, job_id: str, *, lock: bool = False) -> TrainingJob:
    """Raises NotFound, also for another workspace's."""
    job = await find_job(session, workspace, job_id, lock=lock)
    if job is None:
        raise NotFound.of("training job", job_id)
    return job


async def list_jobs(session: AsyncSession, workspace: str, *, before: str | None, limit: int, state: str = "") -> list[TrainingJob]:
    """Newest first."""
    query = select(TrainingJob).where(TrainingJob.workspace == workspace).order_by(TrainingJob.id.desc()).limit(limit)
    if before:
        query = query.where(TrainingJob.id < before)
    if state:
        query = query.where(TrainingJob.state == state)
    return list((await session.execute(query)).scalars())


async def unsettled_jobs_of_all_workspaces(session: AsyncSession, named: Collection[str]) -> list[TrainingJob]:
    """Those that have not ended, and ended ones whose allocation is not given back; oldest first.

    Of those that wait for an allocation, which may be hundreds and which compute tells when it is theirs, only the `named`.
    """
    told = or_(TrainingJob.state != State.QUEUED, TrainingJob.allocation_id == "", TrainingJob.id.in_(named))
    open_ones = select(TrainingJob).where(TrainingJob.state.in_(_UNSETTLED), told).order_by(TrainingJob.id)
    ended = select(TrainingJob).where(TrainingJob.state.not_in(_UNSETTLED), TrainingJob.allocation_id != "")
    return [*(await session.execute(open_ones)).scalars(), *(await session.execute(ended)).scalars()]


async def waiting_jobs_of_all_workspaces(session: AsyncSession) -> list[tuple[str, str, str]]:
    """(id, allocation, reason) of jobs that wait for an allocation."""
    query = select(TrainingJob.id, TrainingJob.allocation_id, TrainingJob.reason).where(
        TrainingJob.state == State.QUEUED, TrainingJob.allocation_id != ""
    )
    return [(row[0], row[1], row[2]) for row in await session.execute(query)]


async def claimable_jobs_of_all_workspaces(session: AsyncSession, now: float, node: str) -> list[tuple[str, str]]:
    """(workspace, id) of jobs that wait for a worker on `node` (empty: any)."""
    query = select(TrainingJob.workspace, TrainingJob.id).where(
        TrainingJob.state == State.STARTING, TrainingJob.lease_holder == "", TrainingJob.not_before <= now
    )
    if node:
        query = query.where(TrainingJob.node == node)
    return [(row[0], row[1]) for row in await session.execute(query.order_by(TrainingJob.id))]


async def states_of_all_workspaces(session: AsyncSession) -> dict[str, int]:
    """How many jobs are in each."""
    return {row[0]: row[1] for row in await session.execute(select(TrainingJob.state, func.count()).group_by(TrainingJob.state))}


async def leases_of_all_workspaces(session: AsyncSession) -> list[TrainingJob]:
    """Jobs that some worker holds."""
    return list((await session.execute(select(TrainingJob).where(TrainingJob.lease_holder != ""))).scalars())


async def controls_of_all_workspaces(session: AsyncSession, ids: Sequence[str]) -> dict[str, tuple[str, int, str]]:
    """By id: state, lease token and allocation, for the workers that watch for cancels."""
    columns = (TrainingJob.id, TrainingJob.state, TrainingJob.lease_token, TrainingJob.allocation_id)
    rows = await session.execute(select(*columns).where(TrainingJob.id.in_(ids)))
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


async def pulses_of_all_workspaces(session: AsyncSession, ids: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """By id: what changes whenever a watcher has something to hear."""
    columns = (TrainingJob.id, TrainingJob.last_event, TrainingJob.progress, TrainingJob.reason)
    rows = await session.execute(select(*columns).where(TrainingJob.id.in_(ids)))
    return {row[0]: tuple(row[1:]) for row in rows}


async def find_job_of_allocation(session: AsyncSession, workspace: str, allocation_id: str) -> TrainingJob | None:
    query = select(TrainingJob).where(TrainingJob.workspace == workspace, TrainingJob.allocation_id == allocation_id)
    return (await session.execute(query.with_for_update())).scalar_one_or_none()


async def stale_reservations_of_all_workspaces(
    session: AsyncSession, *, jobs_before: float, uploads_before: float
) -> list[PendingReservation]:
    of_upload = PendingReservation.job_id.startswith("uploads/")
    before = case((of_upload, uploads_before), else_=jobs_before)
    return list((await session.execute(select(PendingReservation).where(PendingReservation.create_time < before))).scalars())


async def is_reserving(session: AsyncSession, workspace: str, made: str) -> bool:
    """Whether quota is being reserved for what is not made yet."""
    where = (PendingReservation.workspace == workspace, PendingReservation.job_id == made)
    return (await session.execute(select(PendingReservation.job_id).where(*where))).first() is not None


async def delete_reservation(session: AsyncSession, workspace: str, made: str) -> bool:
    """Whether it was there."""
    where = (PendingReservation.workspace == workspace, PendingReservation.job_id == made)
    return bool((await session.execute(delete(PendingReservation).where(*where))).rowcount)


# What a job told


async def append(unit: Unit, job: TrainingJob, kind: str, message: bytes, name: str = "") -> None:
    """`job` must be locked by this unit: its counter orders the events."""
    job.last_event += 1
    name = name.replace("\0", "\ufffd")
    unit.session.add(JobEvent(job_id=job.id, number=job.last_event, workspace=job.workspace, kind=kind, name=name, message=message))


async def events_after(
    session: AsyncSession, workspace: str, job_id: str, after: int, *, limit: int, kind: str = "", name: str = ""
) -> list[JobEvent]:
    query = select(JobEvent).where(JobEvent.workspace == workspace, JobEvent.job_id == job_id, JobEvent.number > after)
    if kind:
        query = query.where(JobEvent.kind == kind)
    if name:
        query = query.where(JobEvent.name == name)
    return list((await session.execute(query.order_by(JobEvent.number).limit(limit))).scalars())


async def count_events(session: AsyncSession, workspace: str, job_id: str, kind: str) -> int:
    query = select(func.count()).where(JobEvent.workspace == workspace, JobEvent.job_id == job_id, JobEvent.kind == kind)
    return (await session.execute(query)).scalar_one()


async def last_metric_events(session: AsyncSession, workspace: str, job_id: str) -> list[JobEvent]:
    """The newest point of each metric."""
    where = (JobEvent.workspace == workspace, JobEvent.job_id == job_id, JobEvent.kind == "metric")
    newest = select(func.max(JobEvent.number)).where(*where).group_by(JobEvent.name)
    return list((await session.execute(select(JobEvent).where(*where, JobEvent.number.in_(newest)))).scalars())


# Checkpoints and files


async def list_checkpoints(session: AsyncSession, workspace: str, job_id: str) -> list[Checkpoint]:
    """Newest first."""
    query = select(Checkpoint).where(Checkpoint.workspace == workspace, Checkpoint.job_id == job_id).order_by(Checkpoint.epoch.desc())
    return list((await session.execute(query)).scalars())


async def files_of(session: AsyncSession, workspace: str, owner: str) -> list[StoredFile]:
    query = select(StoredFile).where(StoredFile.workspace == workspace, StoredFile.owner == owner).order_by(StoredFile.path)
    return list((await session.execute(query)).scalars())


async def delete_checkpoints(session: AsyncSession, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The digests that they named."""
    digests = []
    for checkpoint in checkpoints:
        digests += [file.digest for file in await files_of(session, checkpoint.workspace, checkpoint.owner)]
        await _delete_files(session, checkpoint.workspace, checkpoint.owner)
        await session.delete(checkpoint)
    await session.flush()
    return digests


async def _delete_files(session: AsyncSession, workspace: str, owner: str) -> None:
    await session.execute(delete(StoredFile).where(StoredFile.workspace == workspace, StoredFile.owner == owner))


async def unnamed_of_all_workspaces(session: AsyncSession, purpose: str, digests: Sequence[str]) -> list[str]:
    """Those digests that no row names."""
    query = select(StoredFile.digest).where(StoredFile.purpose == purpose, StoredFile.digest.in_(digests))
    named = set((await session.execute(query)).scalars())
    return [digest for digest in digests if digest not in named]


# Models


async def find_model(session: AsyncSession, workspace: str, name: str, *, lock: bool = False) -> Model | None:
    """Also a deleted one."""
    query = select(Model).where(Model.workspace == workspace, Model.name == name)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


async def get_model(session: AsyncSession, workspace: str, name: str, *, lock: bool = False) -> Model:
    """Raises NotFound with near names."""
    model = await find_model(session, workspace, name, lock=lock)
    if model is None or model.deleted:
        raise NotFound.of("model", name, await model_names(session, workspace))
    return model


async def model_names(session: AsyncSession, workspace: str) -> list[str]:
    query = select(Model.name).where(Model.workspace == workspace, Model.deleted.is_(False)).order_by(Model.name).limit(10_000)
    return list((await session.execute(query)).scalars())


async def list_models(session: AsyncSession, workspace: str, *, after: str | None, limit: int) -> list[Model]:
    """By name."""
    query = select(Model).where(Model.workspace == workspace, Model.deleted.is_(False)).order_by(Model.name).limit(limit)
    return list((await session.execute(query.where(Model.name > after) if after else query)).scalars())


async def get_model_version(session: AsyncSession, workspace: str, name: str, number: int) -> ModelVersion:
    """`number` 0: the newest. Raises NotFound with near names, or with the numbers that there are."""
    model = await get_model(session, workspace, name)
    wanted = number or model.latest_version
    version = await session.get(ModelVersion, (workspace, name, wanted))
    if version is None:
        raise NotFound(f"model '{name}' has no version {wanted}; its newest is {name}@{model.latest_version}")
    return version


async def list_model_versions(session: AsyncSession, workspace: str, name: str, *, before: int | None, limit: int) -> list[ModelVersion]:
    """Newest first."""
    query = select(ModelVersion).where(ModelVersion.workspace == workspace, ModelVersion.model == name)
    if before is not None:
        query = query.where(ModelVersion.number < before)
    return list((await session.execute(query.order_by(ModelVersion.number.desc()).limit(limit))).scalars())


async def delete_model_versions(session: AsyncSession, workspace: str, name: str) -> None:
    versions = await session.execute(select(ModelVersion).where(ModelVersion.workspace == workspace, ModelVersion.model == name))
    for version in versions.scalars():
        await _delete_files(session, workspace, version.owner)
        await session.delete(version)


async def endpoints_of_model(session: AsyncSession, workspace: str, model: str) -> list[str]:
    query = select(ServedModel.endpoint).where(ServedModel.workspace == workspace, ServedModel.model == model)
    return list((await session.execute(query.order_by(ServedModel.endpoint))).scalars())


async def set_served_model(session: AsyncSession, workspace: str, endpoint: str, model: str) -> None:
    """`model` empty: the endpoint is gone."""
    row = await session.get(ServedModel, (workspace, endpoint))
    if row and not model:
        await session.delete(row)
    elif row:
        row.model = model
    elif model:
        session.add(ServedModel(workspace=workspace, endpoint=endpoint, model=model))
