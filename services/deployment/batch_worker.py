"""Runs batch predictions on one node: a process a job, whose parts go to the artifact store and into rows as they are made.

kill -9 at any line costs the part in hand: what lies in the store without a row is made again, with the same bytes, and swept.
"""

import asyncio
import json
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from lepton.compute.v1.compute_service_pb2 import RenewAllocationRequest
from libs import telemetry
from libs.db import Database
from libs.errors import AppError, Conflict, Invalid, NotFound, Transient
from libs.launcher import Exit, Launch, Launcher, LaunchError, Process, signature
from libs.lifecycle import Loop
from libs.rpc import acting_for
from libs.storage import ArtifactStore
from services.deployment import repository, wire
from services.deployment.domain.batch import Part
from services.deployment.domain.resources import CORE_MILLIS, MIB
from services.deployment.handlers import batches
from services.deployment.handlers.admission import Peers
from services.deployment.handlers.batches import Lease, LeaseLost
from services.deployment.package_cache import PackageCache
from services.deployment.settings import Settings
from services.deployment.tables import BatchPrediction

log = structlog.get_logger()

LOOK_SECONDS = 0.1
FAILED = 3
# Until the store, or whatever was away, is asked again.
AWAY_SECONDS = 2.0
STOP_SECONDS = 6.0
GRACE_SECONDS = 1.0
LOG_TAIL_BYTES = 600
MAX_ERROR_BYTES = 1 << 20


@dataclass(frozen=True)
class Stores:
    """Purposes of the artifact store: where rows come from and go to, and where parts wait meanwhile."""

    datasets: ArtifactStore
    parts: ArtifactStore


class Unwanted(Exception):
    """Its process is to end, and the row says why."""


class Evicted(Exception):
    """Its allocation is over."""


class Crashed(AppError):
    """The process ended without having done its work, and may do better another time."""

    default_code = "process_failed"


class BatchWorker:
    """A component. `packages` and `folder` are the node's, which has cleaned them. `alone`: it shares a process with the planner, which
    wakes it."""

    def __init__(
        self,
        database: Database,
        peers: Peers,
        launcher: Launcher,
        stores: Stores,
        packages: PackageCache,
        folder: Path,
        settings: Settings,
        *,
        alone: bool = False,
    ) -> None:
        self._database, self._peers, self._launcher, self._stores = database, peers, launcher, stores
        self._packages, self._folder, self._settings = packages, folder, settings
        self.holder = f"{signature()}/{secrets.token_hex(4)}"
        self._runs: dict[str, asyncio.Task[None]] = {}
        interval = settings.reconcile_seconds if alone else settings.poll_seconds
        self._loop = Loop("deployment-batch-worker", self._look, interval=interval, max_pause=1.0)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        """Ends every process and hands its job back; another worker goes on after the last part."""
        await self._loop.stop()
        for task in self._runs.values():
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs.values(), timeout=STOP_SECONDS)

    def wake(self) -> None:
        """Looks now."""
        self._loop.wake()

    async def _look(self) -> None:
        async with self._database.read() as session:
            found = await repository.claimable_batches_of_all_workspaces(session, self._settings.node, time.time())
        for waiting in found:
            if waiting.id not in self._runs:
                await self._take(waiting)

    async def _take(self, waiting: BatchPrediction) -> None:
        async with self._database.unit() as unit:
            batch = await batches.claim(
                unit,
                workspace=waiting.workspace,
                id=waiting.id,
                node=self._settings.node,
                holder=self.holder,
                expires=self._expires(),
                now=time.time(),
            )
            done = {part.number for part in await repository.parts(unit.session, batch)} if batch else set()
        if batch:
            self._runs[batch.id] = asyncio.create_task(self._run(batch, done), name=f"batch prediction {batch.id}")

    def _expires(self) -> float:
        return time.time() + self._settings.owner_lease_seconds

    async def _run(self, batch: BatchPrediction, done: set[int]) -> None:
        """One attempt, whatever becomes of it."""
        lease = Lease(batch.workspace, batch.id, batch.lease_token)
        folder = self._folder / f"{batch.id}-{batch.lease_token}"
        parent = telemetry.extract({"traceparent": batch.traceparent})
        attributes = {telemetry.WORKSPACE: batch.workspace, "lepton.batch_prediction": batch.id}
        try:
            span = telemetry.tracer().start_as_current_span("batch prediction", context=parent, attributes=attributes)
            with span, acting_for(batch.workspace):
                await self._attempt(lease, batch, done, folder)
        except LeaseLost:
            log.warning("batch_lease_lost", batch_prediction=batch.id)
        except asyncio.CancelledError:
            await self._put_back(lease, "its worker was stopped; the next one goes on", failed=False)
        except Exception:
            log.exception("batch_attempt_failed", batch_prediction=batch.id)
            await self._put_back(lease, "its worker met an error; the platform's log says more", failed=True)
        finally:
            self._runs.pop(batch.id, None)
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _attempt(self, lease: Lease, batch: BatchPrediction, done: set[int], folder: Path) -> None:
        try:
            async with self._packages.hold(batch.files) as package:
                attempt = _Attempt(self, lease, batch, done, folder, package)
                if attempt.left:
                    await attempt.predict()
            await self._register(lease, batch, folder)
        except Unwanted:
            await self._put_back(lease, "cancelled", failed=False)
        except Evicted:
            await self._put_back(lease, "its allocation ended; waits for another", failed=False, evicted=True)
        except LaunchError as error:
            await self._put_back(lease, str(error), failed=True)
        except LeaseLost:
            raise
        except Transient as error:
            await self._put_back(lease, error.detail, failed=False, pause=AWAY_SECONDS)
        except Crashed as error:
            await self._put_back(lease, error.detail, failed=True)
        except NotFound:
            gone = f"the bytes of {batch.dataset} or {batch.reference} are gone; was it deleted?"
            await self._fail(lease, NotFound(gone))
        except AppError as error:
            await self._fail(lease, error)
        log.info("batch_attempt_ended", batch_prediction=batch.id, attempt=batch.attempts)

    async def _register(self, lease: Lease, batch: BatchPrediction, folder: Path) -> None:
        """Data makes one version of all parts: it knows the job by its id, so that asked again it answers the same one."""
        async with self._database.read() as session:
            parts = await repository.parts(session, batch)
        for part in parts:
            path = folder / "done" / f"{part.number}.parquet"
            await self._stores.parts.fetch(part.digest, path)
            await self._stores.datasets.put_file(path)
            await asyncio.to_thread(path.unlink)
            await self.renew(lease)
        version = await self._peers.data.CreateDerivedDatasetVersion(
            wire.derived_version(batch, parts), idempotency_key=batch.id, timeout=self._settings.start_seconds
        )
        async with self._database.unit() as unit:
            await batches.note_registered(unit, lease, number=version.number)

    async def renew(self, lease: Lease) -> None:
        """Raises Unwanted where it is to end, LeaseLost where it is another's."""
        async with self._database.unit() as unit:
            wanted = await batches.renew(unit, lease, self._expires())
        if not wanted:
            raise Unwanted

    async def _put_back(self, lease: Lease, reason: str, *, failed: bool, evicted: bool = False, pause: float = 0.0) -> None:
        try:
            async with self._database.unit() as unit:
                await batches.put_back(unit, lease, reason, time.time(), failed=failed, evicted=evicted, pause=pause)
        except AppError as error:
            log.warning("batch_not_put_back", batch_prediction=lease.id, error=str(error))  # The lease runs out by itself.

    async def _fail(self, lease: Lease, error: AppError) -> None:
        async with self._database.unit() as unit:
            await batches.fail(unit, lease, error, time.time())


class _Attempt:
    """One process and its parts."""

    def __init__(self, worker: BatchWorker, lease: Lease, batch: BatchPrediction, done: set[int], folder: Path, package: Path) -> None:
        self._worker, self._lease, self._batch = worker, lease, batch
        self._folder, self._package = folder, package
        self.left = {part.number: part for part in batch.parts if part.number not in done}
        self._renewed = self._held = time.monotonic()

    async def predict(self) -> None:
        """Returns once every part has its row. Raises what else became of it."""
        process = await self._start()
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=LOOK_SECONDS)
                await self._keep()
            await self._keep()
            if self.left:
                raise await asyncio.to_thread(self._why, ended.result())
        finally:
            if not ended.done():
                await process.stop(GRACE_SECONDS)
            ended.cancel()

    async def _start(self) -> Process:
        """The folder, and the process in it."""
        batch, splits = self._batch, []
        wanted = {part.split for part in self.left.values()}
        await asyncio.to_thread(self._folder.mkdir, 0o700, True, True)
        for number, split in enumerate(batch.splits):
            if split["name"] in wanted:
                path = f"data/{number}.parquet"
                await self._worker._stores.datasets.fetch(split["digest"], self._folder / path)
                splits.append({"name": split["name"], "path": path})
                await self._renew()
        threads = max(1, batch.cpu_millis // CORE_MILLIS)
        spec = {
            "package": str(self._package),
            "splits": splits,
            "parts": [{"number": p.number, "split": p.split, "start": p.start, "stop": p.stop} for p in self.left.values()],
            "columns": batch.kept,
            "added": batch.columns[len(batch.kept) :],
            "probabilities": batch.probabilities,
            "threads": threads,
            "memory_bytes": batch.memory_bytes,
        }
        await asyncio.to_thread((self._folder / "spec.json").write_text, json.dumps(spec))
        return await self._worker._launcher.start(self._launch(threads))

    def _launch(self, threads: int) -> Launch:
        batch, output = self._batch, self._folder / "log"
        return Launch(
            f"{batch.id}-{batch.lease_token}",
            [sys.executable, "-m", "services.deployment.engine", str(self._folder)],
            {
                "OMP_NUM_THREADS": str(threads),
                "CUDA_VISIBLE_DEVICES": "",
                # Where this code was found, it is found again.
                "PYTHONPATH": ":".join(path for path in sys.path if path),
                "PYTHONSAFEPATH": "1",
            },
            cwd=self._folder,
            memory_bytes=batch.memory_bytes,
            stdout=output,
            stderr=output,
            inputs=[self._package],
            cpu_millis=batch.cpu_millis,
            node=batch.node,
            seconds=self._worker._settings.batch_seconds,
            labels={"role": "batch", "workspace": batch.workspace, "job": batch.id},
        )

    async def _keep(self) -> None:
        """Every part that is whole goes to the store, then into its row, then off this disk."""
        folder = self._folder / "parts"
        for path in await asyncio.to_thread(_whole, folder):
            part = self.left.get(int(path.stem))
            if part is not None:
                await self._keep_part(part, path)
        await self._renew()

    async def _keep_part(self, part: Part, path: Path) -> None:
        stored = await self._worker._stores.parts.put_file(path)
        async with self._worker._database.unit() as unit:
            await batches.note_part(
                unit, self._lease, part, digest=stored.digest, size=stored.size, expires=self._worker._expires(), now=time.time()
            )
        del self.left[part.number]
        await asyncio.to_thread(path.unlink, True)

    async def _renew(self) -> None:
        settings, now = self._worker._settings, time.monotonic()
        # As often as a cancel is to be heard of; the row is one of few.
        if now - self._renewed >= min(0.5, settings.owner_lease_seconds / 3):
            self._renewed = now
            await self._worker.renew(self._lease)
        if now - self._held >= settings.allocation_lease_seconds / 3:
            self._held = now
            await self._hold_place()

    async def _hold_place(self) -> None:
        try:
            await self._worker._peers.compute.RenewAllocation(RenewAllocationRequest(id=self._batch.allocation_id))
        except (Conflict, NotFound) as error:
            raise Evicted from error
        except AppError as error:
            log.warning("allocation_not_renewed", batch_prediction=self._batch.id, error=str(error))

    def _why(self, exit: Exit) -> AppError:
        """What an end before the last part means to whoever wants the predictions."""
        if exit.code == FAILED and (problem := _problem(self._folder / "error.json")):
            return problem
        if exit.oom:
            have = self._batch.memory_bytes // MIB
            return Invalid(f"it needs more than its {have} MiB of memory; give it more resources.memory_bytes", code="out_of_memory")
        said = telemetry.redacted(_tail(self._folder / "log"))
        return Crashed(f"its process ended: {exit}" + (f"; it said: {said}" if said else ""))


def _whole(folder: Path) -> list[Path]:
    """In the order of their rows."""
    return sorted(path for path in folder.glob("*.parquet") if path.stem.isdecimal() and path.is_file() and not path.is_symlink())


def _problem(path: Path) -> AppError | None:
    try:
        return AppError.from_dict(json.loads(path.read_bytes())) if path.stat().st_size <= MAX_ERROR_BYTES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tail(path: Path) -> str:
    """The last words of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
