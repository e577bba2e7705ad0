"""Takes jobs as they wait for a worker, watches their rows, and hands them back when it stops. Runs any number at once: compute decides."""

import asyncio
import fcntl
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import structlog
from opentelemetry import propagate, trace

from libs.errors import AppError
from libs.launcher import is_known_dead, signature
from libs.lifecycle import Loop
from libs.rpc import acting_for
from libs.telemetry import SERVICE, WORKSPACE
from services.training import repository
from services.training.domain.states import State
from services.training.handlers import attempts
from services.training.handlers.attempts import Lease
from services.training.reconciler import release
from services.training.supervisor.attempt import Attempt, Stop
from services.training.supervisor.tools import Tools
from services.training.tables import TrainingJob

log = structlog.get_logger()

SCAN_SECONDS = 2.0
WATCH_SECONDS = 0.2
# Another job may be about to name the same bytes, once the rest of its checkpoint is in the store too.
REPLACED_SECONDS = 600.0
STOP_SECONDS = 8.0


@dataclass(frozen=True)
class _Running:
    attempt: Attempt
    task: asyncio.Task[None]


class Supervisor:
    """A component. `take` is what a task's message asks for; without any message it looks by itself."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.holder = f"{signature()}/{uuid4().hex[:8]}"
        self._running: dict[str, _Running] = {}
        self._replaced: list[tuple[float, str]] = []
        self._scan = Loop("training-scan", self._look, interval=SCAN_SECONDS)
        self._watch = Loop("training-watch", self._control, interval=WATCH_SECONDS, max_pause=1.0)
        self._stopping = False
        self._work = _WorkFolder(Path(tools.settings.work_dir), self.holder)
        self._tracer = trace.get_tracer("training")

    async def start(self) -> None:
        await asyncio.to_thread(self._work.open)
        await self._expire_dead_neighbours()
        await self._scan.start()
        await self._watch.start()

    async def stop(self) -> None:
        """Ends every process and hands its job back; another worker goes on from the last checkpoint."""
        self._stopping = True
        await self._scan.stop()
        running = list(self._running.values())
        for each in running:
            each.attempt.stop(Stop.HANDED_BACK)
        if running:
            _, late = await asyncio.wait([each.task for each in running], timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._watch.stop()
        await asyncio.to_thread(self._work.close)

    def wake(self) -> None:
        """Looks for jobs now."""
        self._scan.wake()

    async def take(self, workspace: str, job_id: str) -> None:
        """Claims the job and begins its attempt; nothing where it does not wait for a worker."""
        if self._stopping or job_id in self._running:
            return
        tools = self._tools
        async with tools.database.unit() as unit:
            claimed = await attempts.claim(
                unit,
                workspace=workspace,
                job_id=job_id,
                holder=self.holder,
                seconds=tools.settings.lease_seconds,
                now=tools.clock(),
                node=tools.settings.node,
            )
            if claimed is None:
                return
            lease, job = claimed
            told = await attempts.what_was_told(unit, lease)
        root = self._work.path / f"{job_id}-{lease.token}"
        attempt = Attempt(tools, lease, job, told, root, self._note_replaced)
        self._running[job_id] = _Running(attempt, asyncio.create_task(self._run(attempt, job), name=f"attempt {job_id}"))

    async def _run(self, attempt: Attempt, job: TrainingJob) -> None:
        parent = propagate.extract({"traceparent": job.traceparent})
        attributes: dict[str, str | int] = {
            SERVICE: "training",
            WORKSPACE: job.workspace,
            "lepton.job": job.id,
            "lepton.attempt": job.attempts,
        }
        try:
            with self._tracer.start_as_current_span("training attempt", context=parent, attributes=attributes):
                left = await attempt.run()
                if left is not None and State(left.state).ended:
                    await self._release(left)
        except Exception:
            # Its lease runs out, and the reconciler sees to the job.
            log.exception("attempt_failed", job_id=job.id)
            left = None
        finally:
            del self._running[job.id]
        if left is not None and not State(left.state).ended:
            asyncio.get_running_loop().call_later(max(0.0, left.not_before - time.time()) + 0.01, self.wake)

    async def _release(self, job: TrainingJob) -> None:
        if not job.allocation_id:
            return
        try:
            with acting_for(job.workspace):
                await release(self._tools.database, self._tools.peers, job.workspace, job.id, job.allocation_id)
        except AppError as error:
            log.warning("release_put_off", job_id=job.id, error=str(error))  # The reconciler does it.

    async def _look(self) -> None:
        tools = self._tools
        async with tools.database.read() as session:
            found = await repository.claimable_jobs_of_all_workspaces(session, tools.clock(), tools.settings.node)
        for workspace, job_id in found:
            await self.take(workspace, job_id)
        await self._discard_replaced()

    async def _control(self) -> None:
        if not self._running:
            return
        async with self._tools.database.read() as session:
            controls = await repository.controls_of_all_workspaces(session, list(self._running))
        for job_id, control in controls.items():
            if job_id in self._running:
                self._running[job_id].attempt.control(*control)

    def _note_replaced(self, digests: list[str]) -> None:
        self._replaced += [(time.monotonic(), digest) for digest in digests]

    async def _discard_replaced(self) -> None:
        now = time.monotonic()
        due = [digest for since, digest in self._replaced if now - since > REPLACED_SECONDS]
        if not due:
            return
        self._replaced = [entry for entry in self._replaced if now - entry[0] <= REPLACED_SECONDS]
        async with self._tools.database.read() as session:
            unnamed = await repository.unnamed_of_all_workspaces(session, "checkpoints", due)
        for digest in unnamed:
            await self._tools.stores.checkpoints.discard(digest, idle_seconds=REPLACED_SECONDS)

    async def _expire_dead_neighbours(self) -> None:
        """A worker that was killed on this machine and started again need not wait for its own old leases."""
        async with self._tools.database.read() as session:
            leases = await repository.leases_of_all_workspaces(session)
        for job in leases:
            if is_known_dead(job.lease_holder):
                async with self._tools.database.unit() as unit:
                    await attempts.expire(unit, Lease(job.workspace, job.id, job.lease_holder, job.lease_token))


class _WorkFolder:
    """This worker's own folder under `root`, locked while it lives; those of dead workers are removed."""

    def __init__(self, root: Path, holder: str) -> None:
        self._root = root
        self.path = root / re.sub(r"[^A-Za-z0-9.-]", "-", holder)
        self._lock: IO[str] | None = None

    def open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for left in self._root.glob("*.lock"):
            with left.open() as file:
                if _locks(file):
                    shutil.rmtree(left.with_suffix(""), ignore_errors=True)
                    left.unlink(missing_ok=True)
        self._lock = self.path.with_name(self.path.name + ".lock").open("w")
        _locks(self._lock)
        self.path.mkdir(exist_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
