"""One attempt: from a claimed job to its end, or to the next attempt. Whatever happens, no process of it is left and no word of it lost."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import structlog

from lepton.compute.v1.compute_service_pb2 import RenewAllocationRequest
from libs.db import Unit
from libs.errors import AppError, Conflict, Invalid, NotFound, Transient
from libs.launcher import Exit, Launch, LaunchError, Process
from libs.lifecycle import Loop
from libs.rpc import acting_for
from libs.telemetry import inject
from services.training import repository
from services.training.domain.retry import Outcome
from services.training.domain.states import State
from services.training.handlers import attempts
from services.training.handlers.attempts import Lease, LeaseLost
from services.training.supervisor.environment import environment
from services.training.supervisor.folder import RunFolder
from services.training.supervisor.lines import LineReader
from services.training.supervisor.story import LONGEST_EVENT, LONGEST_OUTPUT, Story
from services.training.supervisor.tools import Tools
from services.training.tables import TrainingJob

log = structlog.get_logger()

# Until the first step, which somebody waits for; then less often, because the run needs the processor more.
FIRST_TICK_SECONDS = 0.05
TICK_SECONDS = 0.1
WRITE_SECONDS = 0.2
CHECKPOINT_SECONDS = 2.0
PERSIST_SECONDS = 60.0
MAX_WAITING = 5000
Result = TypeVar("Result")


class Stop(StrEnum):
    """Why the supervisor ends a process."""

    CANCELLED = "cancelled"
    EVICTED = "its allocation ended"
    HUNG = "it hung"
    TIME_LIMIT = "time limit"
    HANDED_BACK = "the worker stops"
    LEASE_LOST = "another worker has it"


class Attempt:
    """`run` returns when nothing is left to do; it raises nothing but cancellation. `stop` may be called at any time."""

    def __init__(
        self,
        tools: Tools,
        lease: Lease,
        job: TrainingJob,
        told: attempts.Told,
        root: Path,
        on_replaced: Callable[[list[str]], object],
    ) -> None:
        self.lease, self.job = lease, job
        self._tools, self._settings = tools, tools.settings
        self._on_replaced = on_replaced
        self._folder = RunFolder(root)
        self._events = LineReader(self._folder.events, LONGEST_EVENT)
        self._outputs = {
            "stdout": LineReader(self._folder.stdout, LONGEST_OUTPUT),
            "stderr": LineReader(self._folder.stderr, LONGEST_OUTPUT),
        }
        self._story = Story(
            told,
            job.trace_id,
            max_metrics=self._settings.max_metric_points,
            max_lines=self._settings.max_log_lines,
            record_span=tools.record_span,
        )
        self._process: Process | None = None
        self._began = time.monotonic()
        self._launched: float | None = None
        self._written = 0.0
        self._uploaded = (0, 0.0)
        self._upload: asyncio.Task[None] | None = None
        self._stop: Stop | None = None
        self._stopped = asyncio.Event()
        self._closing = asyncio.Event()
        self._writing = asyncio.Lock()

    @property
    def seconds(self) -> float:
        """What the job's processes have used, with this one."""
        return self.job.seconds + (time.monotonic() - self._began)

    @property
    def allocation_id(self) -> str:
        return self.job.allocation_id

    def stop(self, why: Stop) -> None:
        """The first reason counts."""
        if self._stop is None:
            self._stop = why
            self._stopped.set()

    async def run(self) -> TrainingJob | None:
        """The job as it is left; None where another worker has it."""
        keeping = asyncio.create_task(self._keep())
        renewing = Loop("training-renew", self._renew, interval=self._settings.allocation_lease_seconds / 3)
        try:
            with acting_for(self.lease.workspace):
                await renewing.start()
                exit = await self._work()
                conclude = await self._prepare_end(exit)
                self._closing.set()
                await keeping
                await self._finish_upload()
                return await self._persist(conclude)
        except LeaseLost:
            log.warning("lease_lost", job_id=self.lease.job_id, token=self.lease.token)
            return None
        finally:
            self._closing.set()
            keeping.cancel()
            if self._upload:
                self._upload.cancel()
            await renewing.stop()
            if self._process and self._process.alive():
                await self._process.stop(0)
            await self._folder.remove()

    # The process

    async def _work(self) -> Exit | Exception | None:
        """Runs the process to its end: how it ended, why it could not be started, or None when it was stopped before."""
        starting = asyncio.create_task(self._start())
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await starting
                return None
            if error := starting.exception():
                if isinstance(error, Exception):
                    return error
                raise error
            process = starting.result()
            waiting = asyncio.create_task(process.wait())
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await process.stop(self._settings.stop_grace_seconds)
            return await waiting
        finally:
            stopped.cancel()

    async def _start(self) -> Process:
        tools, job, folder = self._tools, self.job, self._folder
        async with tools.database.read() as session:
            checkpoints = await repository.list_checkpoints(session, job.workspace, job.id)
            resume = await repository.files_of(session, job.workspace, checkpoints[0].owner) if checkpoints else []
        await folder.prepare(tools.stores, job, resume, inject().get("traceparent") or job.traceparent)
        launch = Launch(
            f"{job.id}-{job.attempts}",
            tools.command(str(folder.root)),
            environment(job, folder.root),
            cwd=folder.root,
            memory_bytes=job.resources["memory_bytes"],
            stdout=folder.stdout,
            stderr=folder.stderr,
            journals=[folder.events],
            cpu_millis=job.resources["cpu_millis"],
            devices=job.resources["count"] if job.resources["accelerator"] == "gpu" else 0,
            workers=job.workers,
            node=job.node,
            nodes=job.nodes,
            seconds=max(1.0, job.training["time_limit_seconds"] - self.seconds),
            labels={"role": "run", "workspace": job.workspace, "job": job.id},
        )
        self._process = await tools.launcher.start(launch)
        self._launched = time.monotonic()
        return self._process

    # Meanwhile

    async def _keep(self) -> None:
        """Hears the run, writes down what it tells, keeps the lease, and decides when it has to stop."""
        while not self._closing.is_set():
            try:
                self._listen()
                self._check()
                await self._write_if_due()
                self._upload_if_due()
            except LeaseLost:
                self.stop(Stop.LEASE_LOST)
                return
            except Transient as error:
                log.warning("run_not_written", job_id=self.job.id, error=str(error))
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("run_keeping_failed", job_id=self.job.id)
                await asyncio.sleep(0.5)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS if self._story.progress else FIRST_TICK_SECONDS):
                    await self._closing.wait()

    def _listen(self) -> None:
        # While the database is away the files keep what is not read.
        if len(self._story.batch.entries) < MAX_WAITING:
            for line in self._events.read():
                self._story.hear(line)
            for stream, reader in self._outputs.items():
                for line in reader.read():
                    self._story.hear_output(stream, line)

    def _check(self) -> None:
        now, settings = time.monotonic(), self._settings
        if self.seconds > self.job.training["time_limit_seconds"]:
            self.stop(Stop.TIME_LIMIT)
        if self._launched is None:
            return
        silent_since = self._story.heard or self._launched
        patience = settings.hang_seconds if self._story.progress else settings.startup_seconds
        if now - silent_since > patience:
            self.stop(Stop.HUNG)

    async def _write_if_due(self) -> None:
        since = time.monotonic() - self._written
        first = self._story.batch.first_step_time is not None
        if first or (since >= WRITE_SECONDS and not self._story.batch.empty) or since >= self._settings.lease_seconds / 5:
            await self._write()

    async def _write(self) -> None:
        async with self._writing:
            await self._write_batch()

    async def _write_batch(self) -> None:
        batch = self._story.take()
        self._written = time.monotonic()
        try:
            async with self._tools.database.unit() as unit:
                expires = self._tools.clock() + self._settings.lease_seconds
                job = await attempts.record(unit, self.lease, batch, expires=expires, seconds=self.seconds)
        except LeaseLost:
            raise
        except BaseException:
            self._story.give_back(batch)
            raise
        self.control(job.state, job.lease_token, job.allocation_id)

    def control(self, state: str, token: int, allocation_id: str) -> None:
        """What the row says now."""
        if token != self.lease.token:
            self.stop(Stop.LEASE_LOST)
        elif state == State.CANCELLING:
            self.stop(Stop.CANCELLED)
        elif allocation_id != self.allocation_id:
            self.stop(Stop.EVICTED)

    async def _renew(self) -> None:
        try:
            await self._tools.peers.compute.RenewAllocation(RenewAllocationRequest(id=self.allocation_id), timeout=5)
        except Transient as error:
            # Compute is away. It will say what it thinks of the allocation when it is back.
            log.warning("renewal_put_off", job_id=self.job.id, error=str(error))
        except AppError as error:
            if error.code not in ("allocation_ended", "not_found"):
                raise
            self.stop(Stop.EVICTED)

    # Checkpoints

    def _upload_if_due(self) -> None:
        made, (done, at) = self._story.checkpoint, self._uploaded
        if made is None or made[0] <= done or (self._upload and not self._upload.done()) or time.monotonic() - at < CHECKPOINT_SECONDS:
            return
        self._upload = asyncio.create_task(self._keep_checkpoint(*made))

    async def _keep_checkpoint(self, epoch: int, step: int) -> None:
        self._uploaded = epoch, time.monotonic()
        try:
            files = await self._folder.keep_checkpoint(self._tools.stores.checkpoints, self.lease, epoch)
            # The next attempt begins after this epoch: what was told up to it must be written by then.
            await self._write()
            async with self._tools.database.unit() as unit:
                replaced = await attempts.save_checkpoint(unit, self.lease, epoch=epoch, step=step, files=files)
            self._on_replaced(replaced)
        except FileNotFoundError:
            return  # The run has made a newer one already.
        except LeaseLost:
            self.stop(Stop.LEASE_LOST)
        except AppError as error:
            # A run goes on without: the next checkpoint comes soon.
            log.warning("checkpoint_not_kept", job_id=self.job.id, epoch=epoch, error=str(error))

    async def _finish_upload(self) -> None:
        """The newest checkpoint is where the next attempt begins."""
        if self._upload:
            await self._upload
        made = self._story.checkpoint
        if made and made[0] > self._uploaded[0] and self._story.result is None:
            await self._keep_checkpoint(*made)

    # The end

    async def _prepare_end(self, exit: Exit | Exception | None) -> Callable[[Unit], Awaitable[TrainingJob]]:
        """What is to be written last; uploads the package before."""
        for line in self._events.rest():
            self._story.hear(line)
        for stream, reader in self._outputs.items():
            for line in reader.rest():
                self._story.hear_output(stream, line)
        if self._stop is not None:
            return self._after_stop(self._stop)
        if isinstance(exit, Exception) or exit is None:
            return self._not_started(exit)
        story = self._story
        if exit.ok and story.result is not None:
            try:
                package, files = await self._retried(lambda: self._folder.keep_package(self._tools.stores.models))
            except Invalid as error:
                return self._ended(Outcome.CRASHED, error.detail)
            except AppError as error:
                return self._ended(Outcome.STALLED, error.detail)
            result = story.result
            return lambda unit: self._register(unit, package, result, files)
        if exit.oom:
            return self._failed("out_of_memory", self._memory_words())
        if exit.code == 3 and story.error is not None:
            return self._failed(**story.error)
        how = "it ended without a result" if exit.ok else f"it ended with {exit}"
        return self._ended(Outcome.CRASHED, f"{how}: {story.last_output}" if story.last_output else how)

    def _after_stop(self, why: Stop) -> Callable[[Unit], Awaitable[TrainingJob]]:
        match why:
            case Stop.LEASE_LOST:
                raise LeaseLost("the lease was lost")
            case Stop.CANCELLED | Stop.HANDED_BACK:
                return self._ended(Outcome.HANDED_BACK, why)
            case Stop.EVICTED:
                return self._ended(Outcome.EVICTED, why)
            case Stop.HUNG:
                silent = time.monotonic() - (self._story.heard or self._launched or self._began)
                return self._ended(Outcome.HUNG, f"it gave no sign of life for {silent:.0f} s")
            case Stop.TIME_LIMIT:
                return self._failed("time_limit", self._time_words())

    def _not_started(self, error: Exception | None) -> Callable[[Unit], Awaitable[TrainingJob]]:
        if isinstance(error, NotFound):
            return self._failed("not_found", f"the bytes of {self.job.dataset} or of what to start from are gone; was it deleted?")
        if isinstance(error, LaunchError):
            return self._ended(Outcome.CRASHED, str(error))
        if not isinstance(error, AppError):
            log.error("run_not_started", job_id=self.job.id, exc_info=error)
            return self._ended(Outcome.CRASHED, "its process could not be prepared")
        return self._ended(Outcome.STALLED, error.detail)

    def _ended(self, outcome: Outcome, how: str) -> Callable[[Unit], Awaitable[TrainingJob]]:
        return lambda unit: attempts.end_attempt(unit, self.lease, outcome, how, seconds=self.seconds)

    def _failed(self, code: str, detail: str, errors: Any = (), meta: Any = None) -> Callable[[Unit], Awaitable[TrainingJob]]:
        error = {"code": code, "detail": detail, "errors": list(errors), "meta": meta or {}}
        return lambda unit: attempts.end_job(unit, self.lease, error, seconds=self.seconds)

    async def _register(self, unit: Unit, package: dict[str, Any], result: dict[str, Any], files: Any) -> TrainingJob:
        return await attempts.register_model_version(unit, self.lease, package=package, result=result, files=files, seconds=self.seconds)

    async def _persist(self, conclude: Callable[[Unit], Awaitable[TrainingJob]]) -> TrainingJob:
        """Writes what is left to write, and the end; tries for a minute where the database is away."""
        batch = self._story.take()

        async def end() -> TrainingJob:
            async with self._tools.database.unit() as unit:
                if not batch.empty:
                    expires = self._tools.clock() + self._settings.lease_seconds
                    await attempts.record(unit, self.lease, batch, expires=expires, seconds=self.seconds)
                return await conclude(unit)

        return await self._retried(end)

    async def _retried(self, act: Callable[[], Awaitable[Result]]) -> Result:
        until, pause = time.monotonic() + PERSIST_SECONDS, 0.1
        while True:
            try:
                return await act()
            except LeaseLost:
                raise
            except (Transient, Conflict) as error:
                if time.monotonic() > until:
                    raise
                log.warning("run_end_put_off", job_id=self.job.id, error=str(error))
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    def _memory_words(self) -> str:
        memory = self.job.resources["memory_bytes"] / (1 << 30)
        return (
            f"the run needed more than its {memory:.3g} GiB of memory; lower batch_size, make the model smaller, use fewer features, "
            f"or ask for more with resources.memory_bytes (for example {math.ceil(2 * memory)} GiB: {math.ceil(2 * memory) << 30})"
        )

    def _time_words(self) -> str:
        limit, progress = self.job.training["time_limit_seconds"], self._story.progress or self.job.progress
        where = f" in epoch {progress['epoch']} of {progress['epochs']}" if progress else ""
        if self.job.limited_by:
            return f"{limit} s were over{where}: so much was left of the plan's {self.job.limited_by}; fewer epochs need less"
        return f"{limit} s were over{where}; raise training.time_limit_seconds, or lower epochs"
