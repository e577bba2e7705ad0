"""Quota is taken before something is made, and given back where it is not. Awaits the network, outside of units.

The intention is stored first: a process that dies in between leaves a row by which the reconciler gives the quota back.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from lepton.accounts.v1.accounts_service_pb2 import ReleaseQuotaRequest, ReserveQuotaRequest
from libs.db import Database
from libs.errors import AppError, Transient
from services.training import repository
from services.training.domain.admission import used_metric
from services.training.handlers.admission import Peers
from services.training.tables import PendingReservation, TrainingJob

log = structlog.get_logger()

STORAGE = "storage_bytes"


def reservation(workspace: str, made: str) -> str:
    """The name that accounts knows the quota by: of a job by its id, of an upload by "uploads/…"."""
    kind, _, name = made.rpartition("/")
    return f"{kind or 'training-jobs'}/{workspace}/{name}"


@asynccontextmanager
async def giving_back(database: Database, peers: Peers, workspace: str, made: str) -> AsyncIterator[None]:
    """What the block reserves for `made` is given back if it raises. In the unit that stores it, the block says `settle_reservation`."""
    async with database.unit() as unit:
        await unit.insert(PendingReservation(job_id=made, workspace=workspace, create_time=time.time()))
    try:
        yield
    except BaseException:
        try:
            await release_quota(database, peers, workspace, made)
        except AppError as error:
            log.warning("quota_release_put_off", made=made, error=str(error))
        raise


async def settle_reservation(session: AsyncSession, workspace: str, made: str) -> None:
    """From now on what was made stands for its quota itself."""
    if not await repository.delete_reservation(session, workspace, made):
        raise Transient("making it took too long; try again")


async def release_quota(database: Database, peers: Peers, workspace: str, made: str) -> None:
    """Gives back what was reserved for something that was not made."""
    # In a unit, not a read: one whose commit was not heard of has ended, either way, when this one begins.
    async with database.unit() as unit:
        settled = not await repository.is_reserving(unit.session, workspace, made)
    if settled:
        return
    await peers.accounts.ReleaseQuota(ReleaseQuotaRequest(workspace=workspace, reservation=reservation(workspace, made)))
    async with database.unit() as unit:
        await repository.delete_reservation(unit.session, workspace, made)


async def reserve_storage(peers: Peers, workspace: str, made: str, size: int) -> None:
    request = ReserveQuotaRequest(workspace=workspace, metric=STORAGE, reservation=reservation(workspace, made), amount=size)
    await peers.accounts.ReserveQuota(request)


async def reserve_job(peers: Peers, job: TrainingJob) -> None:
    """Sets the job's time limit to what was granted."""
    metric, a_second = used_metric(job.resources, job.workers)
    limit = job.training["time_limit_seconds"]
    name = reservation(job.workspace, job.id)
    one = ReserveQuotaRequest(workspace=job.workspace, metric="concurrent_training_jobs", reservation=name, amount=1)
    seconds = ReserveQuotaRequest(
        workspace=job.workspace, metric=metric, reservation=name, amount=math.ceil(limit * a_second), at_least=math.ceil(a_second)
    )
    # How large its model will be nobody knows, and no training is thrown away for it: one that finds no room at all does not begin.
    room = ReserveQuotaRequest(workspace=job.workspace, metric=STORAGE, reservation=name, amount=1)
    # All are waited for, so that nothing is reserved any more once it is given back.
    answers: list[Any] = await asyncio.gather(*(peers.accounts.ReserveQuota(r) for r in (one, seconds, room)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    granted = max(1, math.floor(answers[1].granted / a_second)) if a_second else limit
    if granted < limit:
        job.training = {**job.training, "time_limit_seconds": granted}
        job.limited_by = metric
