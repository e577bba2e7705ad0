"""One replica, from its claim to its end: a task that holds the process and writes down what becomes of it.

Knows the launcher and compute; which replicas there should be, and where, is the reconciler's affair.
"""

import asyncio
import json
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from opentelemetry import trace

from lepton.compute.v1.compute_service_pb2 import ReleaseAllocationRequest, RenewAllocationRequest
from libs import telemetry
from libs.db import Database
from libs.errors import AppError, Conflict, NotFound
from libs.launcher import Exit, Launch, Launcher, LaunchError, Process
from libs.rpc import Client, acting_for
from services.deployment import smoke
from services.deployment.changes import Changes
from services.deployment.domain.resources import CORE_MILLIS, MIB
from services.deployment.handlers import replicas
from services.deployment.package_cache import PackageCache
from services.deployment.settings import Settings
from services.deployment.tables import Replica, Revision

log = structlog.get_logger()
Found = TypeVar("Found")

TOKEN = "LEPTON_REPLICA_TOKEN"
MISSED_PROBES = 3
KILLED = "its process was killed from outside; another replica takes its place"
LOG_TAIL_BYTES = 600
RELEASE_SECONDS = 2.0
WRITE_PAUSE_SECONDS = 2.0
_LOOK_SECONDS = 0.004


# host, port, token, seconds → whether it answers.
Probe = Callable[[str, int, str, float], Awaitable[bool]]


@dataclass(frozen=True)
class Surroundings:
    """What every run works with. `owner` names this process in the rows; `folder` holds one of each replica; `ended` hears of each end."""

    owner: str
    database: Database
    compute: Client
    launcher: Launcher
    packages: PackageCache
    folder: Path
    changes: Changes
    settings: Settings
    ended: Callable[[], None]
    probe: Probe


class Failed(Exception):
    """The replica's end was its own doing, or its model's."""

    def __init__(self, error: AppError) -> None:
        super().__init__(error.detail)
        self.error = error


class Unwanted(Exception):
    """The replica has to go; its row says why, or the text."""


class Run:
    """Begins at once. `replica` and `revision` are as they were when it was claimed; what becomes of them is in the database."""

    def __init__(self, around: Surroundings, replica: Replica, revision: Revision) -> None:
        self._around, self._replica, self._revision = around, replica, revision
        self._where: dict[str, Any] = {"workspace": replica.workspace, "id": replica.id, "owner": around.owner}
        self._log = log.bind(replica_id=replica.id, endpoint=replica.endpoint, workspace=replica.workspace)
        self._folder = around.folder / replica.id
        self.group = replica.group
        self._process: Process | None = None
        self._port = 0
        self._token = secrets.token_urlsafe(32)
        self._leaving = asyncio.Event()
        self._tended: asyncio.Task[None] | None = None
        self._hurried = False
        self._grace_seconds = around.settings.grace_seconds
        self.task = asyncio.create_task(self._run(), name=f"replica {replica.id}")

    @property
    def answers(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.alive()

    def leave(self, *, hurried: bool, grace_seconds: float | None = None) -> None:
        """Drains and ends it; `hurried`: no router asks it any more."""
        self._hurried = self._hurried or hurried
        if grace_seconds is not None:
            self._grace_seconds = grace_seconds
        self._leaving.set()

    async def _run(self) -> None:
        reason, error = "", None
        try:
            with acting_for(self._replica.workspace):
                await self._live()
        except Unwanted as unwanted:
            reason = str(unwanted)
        except Failed as failed:
            reason, error = failed.error.detail, failed.error
        except AppError as failed_part:
            reason, error = failed_part.detail, failed_part
        except Exception as unexpected:
            error = AppError(f"the replica could not be run: {type(unexpected).__name__}; the platform's log says more")
            reason = error.detail
            self._log.exception("replica_run_failed")
        if error:
            self._log.warning("replica_failed", code=error.code, reason=reason)
        if self._process:
            await self._process.stop(self._grace_seconds)
        await asyncio.to_thread(shutil.rmtree, self._folder, True)
        # Before another replica asks for the room that this one had.
        released = await self._release()
        await self._write_end(reason, error, released)

    async def _live(self) -> None:
        parent = telemetry.extract({"traceparent": self._revision.traceparent})
        attributes = {telemetry.WORKSPACE: self._replica.workspace, "lepton.replica": self._replica.id}
        starting = telemetry.tracer().start_span("start replica", context=parent, attributes=attributes)
        self._tended = asyncio.create_task(self._tend())
        try:
            async with AsyncExitStack() as stack:
                with trace.use_span(starting):
                    package = await self._while_wanted(stack.enter_async_context(self._around.packages.hold(self._revision.files)))
                    process = await self._launched(package)
                starting.end()
                await self._serve(process)
        finally:
            self._tended.cancel()
            await asyncio.gather(self._tended, return_exceptions=True)
            if starting.is_recording():
                starting.end()

    async def _launched(self, package: Path) -> Process:
        """The process, once it answers."""
        self._require_wanted()
        await asyncio.to_thread((self._folder / "tmp").mkdir, 0o700, True, True)
        try:
            process = await self._while_wanted(self._begun(package))
        except LaunchError as error:
            raise Failed(AppError(str(error), code="process_failed")) from error
        async with self._around.database.unit() as unit:
            wanted = await replicas.note_started(unit, **self._where, handle=process.handle)
        if not wanted:
            raise Unwanted
        port = await self._listening(process)
        await self._while_wanted(self._asked_once(package, port))
        self._port = port
        async with self._around.database.unit() as unit:
            wanted = await replicas.note_ready(unit, **self._where, url=self._url(), token=self._token, now=time.time())
        if not wanted:
            raise Unwanted
        self._log.info("replica_ready", model=self._replica.model, seconds=round(time.time() - self._replica.create_time, 3))
        self._changed()
        return process

    async def _begun(self, package: Path) -> Process:
        """The process. Broken off just after its start, it is known all the same."""
        self._process = await self._around.launcher.start(self._launch(package))
        return self._process

    def _url(self) -> str:
        host = (self._process.host if self._process else "") or self._around.settings.advertised_host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def _launch(self, package: Path) -> Launch:
        revision, output = self._revision, self._folder / "log"
        threads = max(1, revision.cpu_millis // CORE_MILLIS)
        options = {
            "--package": package,
            # Under /v2 an endpoint is the model, by its own name.
            "--model-name": revision.endpoint,
            "--model-version": revision.model_version,
            "--host": self._around.settings.replica_host,
            "--port": self._around.settings.replica_port,
            "--threads": threads,
            "--memory-bytes": revision.memory_bytes,
            "--ready-file": self._folder / "ready",
        }
        words = [str(word) for option in options.items() for word in option]
        return Launch(
            self._replica.id,
            [sys.executable, "-m", "services.deployment.replica", *words],
            {
                TOKEN: self._token,
                # What it unpacks goes with its folder, however it ends.
                "TMPDIR": str(self._folder / "tmp"),
                "OMP_NUM_THREADS": str(threads),
                "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in self._replica.devices),
                # Where this code was found, it is found again.
                "PYTHONPATH": ":".join(path for path in sys.path if path),
            },
            cwd=self._folder,
            memory_bytes=revision.memory_bytes,
            stdout=output,
            stderr=output,
            inputs=[package],
            cpu_millis=revision.cpu_millis,
            devices=len(self._replica.devices),
            node=self._replica.node,
            port=self._around.settings.replica_port,
            group=self.group,
            labels={"role": "replica", "workspace": revision.workspace, "endpoint": revision.endpoint},
        )

    async def _listening(self, process: Process) -> int:
        """The port, once it answers there."""
        ready = self._folder / "ready"
        give_up = time.monotonic() + self._around.settings.start_seconds
        while not ready.exists():
            self._require_wanted()
            if not process.alive():
                raise Failed(await self._why(await process.wait()))
            if time.monotonic() > give_up:
                seconds = self._around.settings.start_seconds
                raise Failed(AppError(f"the replica did not answer within {seconds:g} s of its start", code="process_hung"))
            await asyncio.sleep(_LOOK_SECONDS)
        port = int(json.loads(await asyncio.to_thread(ready.read_bytes))["port"])
        if not await self._answers_at(port):
            raise Failed(AppError("the replica listens but does not answer its health check", code="process_hung"))
        return port

    async def _asked_once(self, package: Path, port: int) -> None:
        """Raises what keeps it from answering a prediction."""
        record = await asyncio.to_thread(smoke.record_of, package)
        if record is None:
            return
        why = await smoke.why_not(self._host(), port, self._token, record, self._around.settings.probe_seconds)
        if why:
            said = telemetry.redacted(await asyncio.to_thread(_tail, self._folder / "log"))
            raise Failed(AppError(f"the replica listens, but {why}" + (f"; it said: {said}" if said else ""), code="process_failed"))

    async def _answers_at(self, port: int) -> bool:
        return await self._around.probe(self._host(), port, self._token, self._around.settings.probe_seconds)

    def _host(self) -> str:
        """Where this process reaches it."""
        return (self._process.host if self._process else "") or self._around.settings.probed_host

    async def _serve(self, process: Process) -> None:
        """While it is wanted and lives. Always raises."""
        ended = asyncio.create_task(process.wait())
        try:
            await self._first(ended)
            if self._leaving.is_set() and not self._hurried:
                await asyncio.wait([ended], timeout=self._around.settings.route_seconds)
            self._require_wanted()
            if ended.result().killed:
                # It had answered: neither it nor its model is to blame.
                raise Unwanted(KILLED)
            raise Failed(await self._why(ended.result()))
        finally:
            ended.cancel()

    async def _tend(self) -> None:
        """Renews the allocation and looks whether it answers. Raises when it has to go."""
        settings, missed, took = self._around.settings, 0, 0.0
        while True:
            await self._renew()
            # Of one that hangs the question itself takes the turn.
            await asyncio.sleep(max(0.0, min(settings.allocation_lease_seconds / 3, settings.probe_seconds) - took))
            if self._port:
                asked = time.monotonic()
                missed = 0 if await self._answers_at(self._port) else missed + 1
                took = time.monotonic() - asked
            if missed >= MISSED_PROBES:
                self._grace_seconds = 0
                raise Failed(AppError(f"the replica did not answer {missed} health checks in a row", code="process_hung"))

    async def _renew(self) -> None:
        try:
            await self._around.compute.RenewAllocation(RenewAllocationRequest(id=self._replica.allocation_id))
        except (Conflict, NotFound) as error:
            self._grace_seconds = 0
            raise Unwanted(f"its allocation is over: {error.detail}") from error
        except AppError as error:
            self._log.warning("allocation_not_renewed", error=str(error))

    async def _release(self) -> bool:
        """Whether compute has its allocation back; the reconciler tries again what failed."""
        try:
            request = ReleaseAllocationRequest(id=self._replica.allocation_id)
            with acting_for(self._replica.workspace):
                await self._around.compute.ReleaseAllocation(request, timeout=RELEASE_SECONDS)
        except NotFound:
            self._log.info("allocation_unknown", allocation_id=self._replica.allocation_id)
        except AppError as error:
            self._log.warning("allocation_release_put_off", error=str(error))
            return False
        return True

    async def _why(self, exit: Exit) -> AppError:
        """What an end that nobody asked for means to the endpoint's owner."""
        if exit.oom:
            have = self._revision.memory_bytes // MIB
            return AppError(
                f"a replica needs more than its {have} MiB of memory; give it more resources.memory_bytes", code="out_of_memory"
            )
        said = telemetry.redacted(await asyncio.to_thread(_tail, self._folder / "log"))
        return AppError(f"the replica ended: {exit}" + (f"; it said: {said}" if said else ""), code="process_failed")

    async def _write_end(self, reason: str, error: AppError | None, released: bool) -> None:
        """As long as it takes: a row says of a process that it runs."""
        problem, tries = error.as_dict() if error else None, 0
        while True:
            try:
                async with self._around.database.unit() as unit:
                    await replicas.note_ended(unit, **self._where, reason=reason, now=time.time(), released=released, error=problem)
                break
            except Exception as failure:
                tries += 1
                self._log.warning("replica_end_not_written", tries=tries, error=str(failure))
                await asyncio.sleep(min(WRITE_PAUSE_SECONDS, 0.1 * 2**tries))
        self._changed()
        self._around.ended()

    def _changed(self) -> None:
        self._around.changes.notify(self._replica.workspace, self._replica.endpoint)

    def _require_wanted(self) -> None:
        """Raises what says that it has to go."""
        if self._leaving.is_set():
            raise Unwanted
        if self._tended and self._tended.done():
            self._tended.result()

    async def _first(self, task: "asyncio.Task[Any]") -> None:
        """Returns when the task has ended, or it has to go."""
        assert self._tended
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait([task, self._tended, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()

    async def _while_wanted(self, work: Coroutine[Any, Any, Found]) -> Found:
        """What the work answers; it is broken off when the replica has to go."""
        task = asyncio.create_task(work)
        try:
            await self._first(task)
            self._require_wanted()
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])


async def is_healthy(host: str, port: int, token: str, seconds: float) -> bool:
    """Whether GET /healthz answers 200 in time."""
    request = f"GET /healthz HTTP/1.1\r\nhost: {host}\r\nx-lepton-replica-token: {token}\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request.encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _tail(path: Path) -> str:
    """The last words of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
