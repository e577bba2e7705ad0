"""The worker's part: claims versions that are to be made, runs the engine, puts its files into the store, and writes what came of it.

kill -9 at any line leaves a row whose lease runs out, and objects that no row names: another worker makes the version anew.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import propagate, trace

from libs.db import Database, new_id
from libs.errors import AppError, Invalid, NotFound, Transient
from libs.lifecycle import Loop
from libs.storage import ArtifactStore
from services.data import repository
from services.data.desk import Desk
from services.data.engine import process
from services.data.engine.limits import Limits
from services.data.engine.process import EngineFailed
from services.data.handlers import versions
from services.data.handlers.versions import Key, Lease, LeaseLost
from services.data.tables import INPUT, UPLOAD, File, Version

log = structlog.get_logger()

LOOK_SECONDS = 1.0
# Until the store, or whatever was away, is asked again.
AWAY_SECONDS = 2.0


class Maker:
    """A component. Makes up to `at_once` versions at the same time; looks for work when woken and every second."""

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        work_dir: Path,
        limits: Limits,
        *,
        at_once: int,
        lease_seconds: float,
        run: Callable[..., Any] = process.run,
    ) -> None:
        self._database, self._store, self._limits, self._run = database, store, limits, run
        self._at_once, self._lease_seconds = at_once, lease_seconds
        self._holder = new_id("maker")
        self._desk = Desk(work_dir, self._holder)
        self._in_hand: set[asyncio.Task[None]] = set()
        self._loop = Loop("data-maker", self._look, interval=LOOK_SECONDS)
        self._tracer = trace.get_tracer("data")

    async def start(self) -> None:
        await asyncio.to_thread(self._desk.open)
        await self._loop.start()

    async def stop(self) -> None:
        """What is in hand is given to the next worker at once."""
        await self._loop.stop()
        for task in self._in_hand:
            task.cancel()
        await asyncio.gather(*self._in_hand, return_exceptions=True)
        await asyncio.to_thread(self._desk.close)

    def wake(self) -> None:
        """There may be something to make."""
        self._loop.wake()

    async def _look(self) -> None:
        free = self._at_once - len(self._in_hand)
        if free <= 0:
            return
        async with self._database.read() as session:
            found = await repository.claimable_of_all_workspaces(session, time.time(), free)
        for where in found:
            async with self._database.unit() as unit:
                claimed = await versions.claim_version(
                    unit, Key(*where), holder=self._holder, now=time.time(), lease_seconds=self._lease_seconds
                )
            if claimed:
                task = asyncio.create_task(self._make(*claimed), name=f"make {where[1]}@{where[2]}")
                self._in_hand.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_hand.discard(task)
        self.wake()

    async def _make(self, lease: Lease, version: Version) -> None:
        """One attempt, whatever becomes of it."""
        parent = propagate.extract({"traceparent": version.traceparent})
        attributes = {"lepton.workspace": version.workspace, "lepton.dataset": f"{version.dataset}@{version.number}"}
        with self._tracer.start_as_current_span(f"make version: {version.job['kind']}", context=parent, attributes=attributes):
            work = asyncio.create_task(self._attempt(lease, version))
            ended = asyncio.Event()
            keeping = asyncio.create_task(self._keep(lease, work, ended))
            try:
                await work
            except LeaseLost:
                log.warning("lease_lost", dataset=lease.key.dataset, number=lease.key.number, token=lease.token)
            except asyncio.CancelledError:
                # Ended from outside, or by `_keep` because the lease is lost: then there is nothing to put back.
                work.cancel()
                with suppress(asyncio.CancelledError, AppError):
                    await work
                await asyncio.shield(self._put_back(lease, counts=False))
            except Transient as error:
                # What is away says nothing of the version: it waits for that as long as it takes.
                log.warning("version_put_off", dataset=lease.key.dataset, number=lease.key.number, error=str(error))
                await self._put_back(lease, counts=False, pause=AWAY_SECONDS)
            except Exception as error:
                log.warning("version_put_back", dataset=lease.key.dataset, number=lease.key.number, error=repr(error))
                await self._put_back(lease, counts=True)
            finally:
                # Not cancelled: that would break off a query, and its connection with it.
                ended.set()
                await keeping

    async def _attempt(self, lease: Lease, version: Version) -> None:
        folder = self._desk.folder("make")
        try:
            made = await self._run_engine(version, folder)
            digests = {}
            for split in made["splits"]:
                digests[split["name"]] = (await self._store.put_file(folder / "work" / split["file"])).digest
        except EngineFailed as error:
            log.error("engine_failed", dataset=version.dataset, number=version.number, attempt=version.attempts, **error.meta)
            raise
        except Transient:
            raise
        except AppError as error:
            async with self._database.unit() as unit:
                await versions.refuse_version(unit, lease, error)
            log.info("version_refused", dataset=version.dataset, number=version.number, code=error.code)
            return
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        async with self._database.unit() as unit:
            await versions.finish_version(unit, lease, made, digests, time.time())
        log.info("version_ready", dataset=version.dataset, number=version.number, rows=made["rows"])

    async def _run_engine(self, version: Version, folder: Path) -> dict[str, Any]:
        async with self._database.read() as session:
            files = await repository.files(session, [version], [UPLOAD, INPUT])
        sources = [await self._fetch(file, folder / "in" / str(file.position)) for file in files]
        work = folder / "work"
        work.mkdir()
        job = dict(version.job)
        kind = job.pop("kind")
        if kind == "ingest":
            job["path"] = str(sources[0])
        else:
            job["splits"] = [{"name": file.name, "path": str(path)} for file, path in zip(files, sources, strict=True)]
        return dict(await self._run(kind, job, work, self._limits))

    async def _fetch(self, file: File, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await self._store.fetch(file.digest, path)
        except NotFound:
            raise Invalid("the bytes are no longer in the artifact store; upload them again", code="invalid_data") from None
        return path

    async def _keep(self, lease: Lease, work: asyncio.Task[None], ended: asyncio.Event) -> None:
        """Renews the lease; ends the work where it is lost, or where nobody could be told for so long that it must be."""
        expires = time.time() + self._lease_seconds
        while not await _happens(ended, self._lease_seconds / 3) and not work.done():
            try:
                async with self._database.unit() as unit:
                    await versions.renew_lease(unit, lease, time.time() + self._lease_seconds)
                expires = time.time() + self._lease_seconds
            except LeaseLost:
                work.cancel()
            except AppError as error:
                log.warning("lease_not_renewed", dataset=lease.key.dataset, number=lease.key.number, error=str(error))
                if time.time() > expires:
                    work.cancel()

    async def _put_back(self, lease: Lease, *, counts: bool, pause: float = 0.0) -> None:
        try:
            async with self._database.unit() as unit:
                await versions.put_back(unit, lease, now=time.time(), counts=counts, pause=pause)
        except AppError as error:
            # The lease runs out by itself.
            log.warning("version_not_put_back", dataset=lease.key.dataset, number=lease.key.number, error=str(error))


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
