"""Makes of each batch prediction's row what it says: a place asked for, lost workers buried, its version awaited, what it held given back.

Knows no process; what a worker does is in batch_worker.py. Any number of instances may do this at once: rows decide.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from lepton.compute.v1.allocation_pb2 import ALLOCATION_STATE_GRANTED, ALLOCATION_STATE_QUEUED, Allocation
from lepton.compute.v1.compute_service_pb2 import BatchGetAllocationsRequest, CreateAllocationRequest, ReleaseAllocationRequest
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2 import GetDatasetVersionRequest
from libs.db import Database
from libs.errors import AppError, Conflict, NotFound, Transient
from libs.launcher import is_known_dead
from libs.lifecycle import Loop, Rounds, Turn
from libs.rpc import acting_for
from libs.rpc.problem import from_problem
from libs.storage import ArtifactStore
from services.deployment import repository, wire
from services.deployment.domain.batch import BatchState, Step, next_step
from services.deployment.handlers import batches
from services.deployment.handlers.admission import Peers
from services.deployment.handlers.batch_admission import release_quota, withdraw
from services.deployment.settings import Settings
from services.deployment.tables import BatchPrediction

log = structlog.get_logger()

# Between two questions to others for one thing that has not changed.
ASK_AGAIN_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 0.5
ASKED_AT_ONCE = 500
SWEEP_SECONDS = 3600.0
SWEEP_BATCH = 500


class BatchPlanner:
    """A component. `granted` tells a worker of this process, if there is one, to look now."""

    def __init__(self, database: Database, peers: Peers, settings: Settings, granted: Callable[[], Any] = lambda: None) -> None:
        self._database, self._peers, self._settings, self._granted = database, peers, settings, granted
        self._loop = Loop("deployment-batches", self.step, interval=settings.reconcile_seconds)
        self._rounds = Rounds("deployment-batches")
        # Whose allocation is no longer what their row says.
        self._named = set[str]()

    @property
    def part_rows(self) -> int:
        """The least that a part has, where there are more rows."""
        return self._settings.batch_part_rows

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    def wake(self) -> None:
        """Looks now, also at what it has asked for a moment ago."""
        self._rounds.forget()
        self._loop.wake()

    async def step(self) -> None:
        """One look at every row that has not come to rest."""
        async with self._database.read() as session:
            found = await repository.unsettled_batches_of_all_workspaces(session)
        now = time.time()
        named, self._named = self._named, set()
        turns, waiting = list[Turn](), list[BatchPrediction]()
        for batch in found:
            step = self._next(batch, now)
            if step is Step.ASK and batch.allocation_id and not batch.node and batch.id not in named:
                waiting.append(batch)
            elif step is not Step.NOTHING:
                turns.append(self._turn(batch, step, batch.id in named))
        if waiting:
            turns.append(Turn("waiting", partial(self._look_after, waiting), ASK_AGAIN_SECONDS))
        await self._rounds.go(turns)

    async def _look_after(self, waiting: Sequence[BatchPrediction]) -> None:
        """Of all that wait for a place at once: which no longer do, or for another reason."""
        for start in range(0, len(waiting), ASKED_AT_ONCE):
            part = waiting[start : start + ASKED_AT_ONCE]
            request = BatchGetAllocationsRequest(ids=[batch.allocation_id for batch in part])
            answer = await self._peers.compute.BatchGetAllocations(request)
            queued = {a.id: _reason(a) for a in answer.allocations if a.state == ALLOCATION_STATE_QUEUED}
            self._named |= {batch.id for batch in part if queued.get(batch.allocation_id) != batch.reason}
        if self._named:
            self._loop.wake()

    def _next(self, batch: BatchPrediction, now: float) -> Step:
        """Who is known to be dead is not waited for."""
        dead = (
            batch.lease_holder
            and BatchState(batch.state) in (BatchState.RUNNING, BatchState.CANCELLING)
            and is_known_dead(batch.lease_holder)
        )
        return Step.BURY if dead else next_step(batch, now)

    def _turn(self, batch: BatchPrediction, step: Step, named: bool) -> Turn:
        # What was granted and is not begun on its node may be over by now.
        asking = self._settings.allocation_lease_seconds / 3 if batch.node else ASK_AGAIN_SECONDS
        pause = {Step.ASK: 0.0 if named else asking, Step.LOOK: LOOK_AGAIN_SECONDS}.get(step, 0.0)
        return Turn((batch.id, step), partial(self._act, batch, step), pause)

    async def _act(self, batch: BatchPrediction, step: Step) -> None:
        where: dict[str, Any] = {"workspace": batch.workspace, "id": batch.id}
        with acting_for(batch.workspace, traceparent=batch.traceparent):
            match step:
                case Step.WITHDRAW:
                    await withdraw(self._database, self._peers, batch)
                case Step.ASK:
                    await self._ask(batch)
                case Step.LOOK:
                    await self._look(batch)
                case Step.RELEASE:
                    await self._release(batch)
                case Step.BURY:
                    async with self._database.unit() as unit:
                        await batches.bury(unit, **where, now=time.time(), known_dead=is_known_dead(batch.lease_holder))
                        unit.after_commit(self.wake)
                case Step.CANCEL:
                    async with self._database.unit() as unit:
                        await batches.finish_cancel(unit, **where, now=time.time())
                        unit.after_commit(self.wake)

    async def _ask(self, batch: BatchPrediction) -> None:
        request = CreateAllocationRequest(
            workspace=batch.workspace,
            holder=batch.holder,
            resources=wire.resources_message(batch.needs),
            lease_seconds=self._settings.allocation_lease_seconds,
        )
        try:
            allocation = await self._peers.compute.CreateAllocation(request)
        except Transient:
            raise
        except AppError as error:
            await self._refuse(batch, error)
            return
        granted = allocation.state == ALLOCATION_STATE_GRANTED
        reason = f"has an allocation on {allocation.node}; a worker is about to take it" if granted else _reason(allocation)
        async with self._database.unit() as unit:
            await batches.note_allocation(
                unit,
                workspace=batch.workspace,
                id=batch.id,
                allocation_id=allocation.id,
                node=allocation.node if granted else "",
                reason=reason,
            )
            unit.after_commit(self._granted)

    async def _look(self, batch: BatchPrediction) -> None:
        """Its process is gone: the place is free while data makes the version."""
        if batch.allocation_id:
            await self._give_back(batch)
        request = GetDatasetVersionRequest(name=batch.output, number=batch.output_version)
        try:
            version = await self._peers.data.GetDatasetVersion(request)
        except NotFound:
            await self._refuse(batch, Conflict(f"{batch.output}@{batch.output_version} was deleted before it was ready"))
            return
        if version.state == dataset_pb2.VERSION_STATE_FAILED:
            await self._refuse(batch, from_problem(version.error))
        elif version.state == dataset_pb2.VERSION_STATE_READY:
            async with self._database.unit() as unit:
                await batches.finish_batch(unit, workspace=batch.workspace, id=batch.id, now=time.time())
                unit.after_commit(self.wake)

    async def _refuse(self, batch: BatchPrediction, error: AppError) -> None:
        log.warning("batch_refused", batch_prediction=batch.id, code=error.code, reason=error.detail)
        async with self._database.unit() as unit:
            await batches.refuse_batch(unit, workspace=batch.workspace, id=batch.id, error=error, now=time.time())
            unit.after_commit(self.wake)

    async def _release(self, batch: BatchPrediction) -> None:
        if batch.allocation_id:
            await self._give_back(batch)
        if batch.quota_held:
            await release_quota(self._peers, batch)
        async with self._database.unit() as unit:
            await batches.note_released(unit, workspace=batch.workspace, id=batch.id)

    async def _give_back(self, batch: BatchPrediction) -> None:
        try:
            await self._peers.compute.ReleaseAllocation(ReleaseAllocationRequest(id=batch.allocation_id))
        except NotFound:
            log.info("allocation_unknown", batch_prediction=batch.id, allocation_id=batch.allocation_id)


def _reason(allocation: Allocation) -> str:
    return allocation.reason or "waits for an allocation"


class PartSweep:
    """A component: removes parts that no row names: of jobs that have ended, and of workers that died before they could say so."""

    def __init__(self, database: Database, store: ArtifactStore, idle_seconds: float) -> None:
        self._database, self._store, self._idle_seconds = database, store, idle_seconds
        self._loop = Loop("deployment-part-sweep", self.sweep, interval=min(SWEEP_SECONDS, idle_seconds))

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def sweep(self) -> None:
        old = [digest async for digest, idle in self._store.list() if idle >= self._idle_seconds]
        for start in range(0, len(old), SWEEP_BATCH):
            async with self._database.read() as session:
                unnamed = await repository.unnamed_of_all_workspaces(session, old[start : start + SWEEP_BATCH])
            for digest in unnamed:
                await self._store.discard(digest, idle_seconds=self._idle_seconds)
