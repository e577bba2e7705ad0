"""Makes of each job's row what it says: allocations asked for and given back, workers told, lost attempts buried.

Knows no process; what a worker does is in supervisor/.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.compute_service_pb2 import BatchGetAllocationsRequest, CreateAllocationRequest, ReleaseAllocationRequest
from libs.db import Database
from libs.errors import AppError, NotFound, Transient
from libs.lifecycle import Loop, Rounds, Turn
from libs.rpc import acting_for
from libs.rpc.names import enum_name_by_number
from libs.storage import ArtifactStore
from services.training import repository, wire
from services.training.domain.step import Step, next_step
from services.training.handlers import jobs
from services.training.handlers.admission import Peers
from services.training.handlers.quota import release_quota
from services.training.settings import Settings
from services.training.tables import TrainingJob

log = structlog.get_logger()

# Between two looks at one thing that has not changed.
ASK_AGAIN_SECONDS = 2.0
HINT_AGAIN_SECONDS = 2.0
# Of an allocation that waits an event says when it is granted: looking is for why it waits, and for an event that is late.
LOOK_AFTER_SECONDS = 15.0
ASKED_AT_ONCE = 500
# So long a job or an upload may be on its way into its row; the gateway waits for the latter for half of that.
STALE_JOB_SECONDS = 120.0
STALE_UPLOAD_SECONDS = 600.0
SWEEP_SECONDS = 3600.0

Hint = Callable[[str, str, str], None]


class Reconciler:
    """A component. `hint(workspace, job_id, node)` tells the workers of a job that waits for one of them, on that node."""

    def __init__(self, database: Database, peers: Peers, hint: Hint, settings: Settings) -> None:
        self._database, self._peers, self._hint, self._settings = database, peers, hint, settings
        self._loop = Loop("training-reconciler", self.step, interval=settings.reconcile_seconds)
        self._waiting = Loop("training-waiting", self.look_after_waiting, interval=LOOK_AFTER_SECONDS)
        self._rounds = Rounds("training-reconciler")
        # Jobs that wait for an allocation of which something was heard.
        self._named = set[str]()

    async def start(self) -> None:
        await self._loop.start()
        await self._waiting.start()

    async def stop(self) -> None:
        await self._waiting.stop()
        await self._loop.stop()

    def wake(self, job_id: str = "") -> None:
        """Looks now; at a job that waits for an allocation only where it is named."""
        if job_id:
            self._named.add(job_id)
        self._loop.wake()

    async def look_after_waiting(self) -> None:
        """Names the jobs whose allocation is no longer what their row says: compute's event may still be on its way."""
        async with self._database.read() as session:
            waiting = await repository.waiting_jobs_of_all_workspaces(session)
        for start in range(0, len(waiting), ASKED_AT_ONCE):
            part = waiting[start : start + ASKED_AT_ONCE]
            answer = await self._peers.compute.BatchGetAllocations(BatchGetAllocationsRequest(ids=[id for _, id, _ in part]))
            queued = {a.id: a.reason for a in answer.allocations if a.state == allocation_pb2.ALLOCATION_STATE_QUEUED}
            for job_id, allocation_id, reason in part:
                if queued.get(allocation_id) != reason:
                    self.wake(job_id)

    async def step(self) -> None:
        named, self._named, now = self._named, set(), time.time()
        async with self._database.read() as session:
            found = await repository.unsettled_jobs_of_all_workspaces(session, named)
            stale = await repository.stale_reservations_of_all_workspaces(
                session, jobs_before=now - STALE_JOB_SECONDS, uploads_before=now - STALE_UPLOAD_SECONDS
            )
        turns = [self._turn(job, step, job.id in named) for job in found if (step := next_step(job, now)) is not Step.NOTHING]
        for left in stale:
            give_back = partial(release_quota, self._database, self._peers, left.workspace, left.job_id)
            turns.append(Turn(("reservation", left.job_id), give_back, ASK_AGAIN_SECONDS))
        await self._rounds.go(turns)

    def _turn(self, job: TrainingJob, step: Step, named: bool) -> Turn:
        pause = {Step.ASK: 0.0 if named else ASK_AGAIN_SECONDS, Step.HINT: HINT_AGAIN_SECONDS}.get(step, 0.0)
        return Turn((job.id, step, job.attempts), partial(self._act, job, step), pause)

    async def _act(self, job: TrainingJob, step: Step) -> None:
        where: dict[str, Any] = {"workspace": job.workspace, "job_id": job.id}
        with acting_for(job.workspace, traceparent=job.traceparent):
            match step:
                case Step.ASK:
                    await self._ask(job)
                case Step.HINT:
                    self._hint(job.workspace, job.id, job.node)
                case Step.RELEASE:
                    await release(self._database, self._peers, job.workspace, job.id, job.allocation_id)
                case Step.BURY:
                    async with self._database.unit() as unit:
                        await jobs.bury_attempt(unit, **where, now=time.time())
                        unit.after_commit(self.wake)
                case Step.CANCEL:
                    async with self._database.unit() as unit:
                        await jobs.finish_cancel(unit, **where, now=time.time())
                        unit.after_commit(self.wake)

    async def _ask(self, job: TrainingJob) -> None:
        request = CreateAllocationRequest(
            workspace=job.workspace,
            holder=job.holder,
            resources=wire.resources_message(job.resources),
            workers=job.workers,
            lease_seconds=self._settings.allocation_lease_seconds,
        )
        try:
            allocation = await self._peers.compute.CreateAllocation(request)
        except Transient:
            raise
        except AppError as error:
            async with self._database.unit() as unit:
                await jobs.refuse_job(unit, workspace=job.workspace, job_id=job.id, error=error)
            return
        async with self._database.unit() as unit:
            ready = await jobs.note_allocation(
                unit,
                workspace=job.workspace,
                job_id=job.id,
                attempt=job.attempts + 1,
                allocation_id=allocation.id,
                state=enum_name_by_number(allocation_pb2.AllocationState.DESCRIPTOR)[allocation.state],
                reason=allocation.reason,
                node=allocation.node,
                devices=list(allocation.devices),
                nodes=list(allocation.nodes),
            )
            if ready:
                self._rounds.note((job.id, Step.HINT, job.attempts))
                unit.after_commit(lambda: self._hint(job.workspace, job.id, allocation.node))


async def release(database: Database, peers: Peers, workspace: str, job_id: str, allocation_id: str) -> None:
    """Gives the allocation of an ended job back, and forgets it once compute knows."""
    try:
        await peers.compute.ReleaseAllocation(ReleaseAllocationRequest(id=allocation_id))
    except NotFound:
        log.info("allocation_unknown", job_id=job_id, allocation_id=allocation_id)
    async with database.unit() as unit:
        await jobs.forget_allocation(unit, workspace=workspace, job_id=job_id, allocation_id=allocation_id)


class Sweep:
    """A component: removes objects that no row names, such as those of deleted models and of uploads that came to nothing."""

    def __init__(self, database: Database, stores: dict[str, ArtifactStore], idle_seconds: float) -> None:
        self._database, self._stores, self._idle_seconds = database, stores, idle_seconds
        self._loop = Loop("training-sweep", self.sweep, interval=SWEEP_SECONDS)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def sweep(self) -> None:
        for purpose, store in self._stores.items():
            old = [digest async for digest, idle in store.list() if idle >= self._idle_seconds]
            for start in range(0, len(old), 500):
                async with self._database.read() as session:
                    unnamed = await repository.unnamed_of_all_workspaces(session, purpose, old[start : start + 500])
                for digest in unnamed:
                    await store.discard(digest, idle_seconds=self._idle_seconds)
