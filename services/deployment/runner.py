"""One replica, from its allocation to its end: a task that holds the process and writes down what becomes of it.

Knows the launcher and compute; which replicas there should be is the reconciler's affair.
"""

import asyncio
import json
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace

from lepton.compute.v1.allocation_pb2 import ALLOCATION_STATE_GRANTED, Allocation
from lepton.compute.v1.compute_service_pb2 import CreateAllocationRequest, RenewAllocationRequest
from libs import telemetry
from libs.db import Database
from libs.errors import AppError, Conflict, NotFound, Transient
from libs.launcher import Exit, Launch, Launcher, LaunchError, Process
from libs.rpc import Client, acting_for
from services.deployment import wire
from services.deployment.changes import Changes
from services.deployment.domain.resources import CORE_MILLIS, MIB
from services.deployment.handlers import replicas
from services.deployment.package_cache import PackageCache
from services.deployment.settings import Settings
from services.deployment.tables import Endpoint, Replica

log = structlog.get_logger()

HOST = "127.0.0.1"
TOKEN = "LEPTON_REPLICA_TOKEN"
ASK_AGAIN_SECONDS = 2.0
MISSED_PROBES = 3
LOG_TAIL_BYTES = 600
WRITE_TRIES = 5
_LOOK_SECONDS = 0.01


# host, port, token, seconds → whether it answers.
Probe = Callable[[str, int, str, float], Awaitable[bool]]


@dataclass(frozen=True)
class Surroundings:
    """What every run works with. `owner` names this process in the rows; `wake` makes the reconciler look."""

    owner: str
    database: Database
    compute: Client
    launcher: Launcher
    packages: PackageCache
    changes: Changes
    settings: Settings
    wake: Callable[[], None]
    probe: Probe


class Failed(Exception):
    """The replica's end was its own doing, or its model's."""

    def __init__(self, error: AppError) -> None:
        super().__init__(error.detail)
        self.error = error


class Unwanted(Exception):
    """The replica has to go; its row says why, or the text."""


class Run:
    """Begins at once. `replica` and `endpoint` are as they were then; what becomes of them is in the database."""

    def __init__(self, around: Surroundings, replica: Replica, endpoint: Endpoint) -> None:
        self._around, self._replica, self._endpoint = around, replica, endpoint
        self._where: dict[str, Any] = {"workspace": replica.workspace, "id": replica.id}
        self._log = log.bind(replica_id=replica.id, endpoint=replica.endpoint, workspace=replica.workspace)
        self._folder = Path(around.settings.work_dir) / "replicas" / replica.id
        self._process: Process | None = None
        self._allocation_id = replica.allocation_id
        self._token = secrets.token_urlsafe(32)
        self._leaving, self._asked = asyncio.Event(), asyncio.Event()
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

    def ask_again(self) -> None:
        """Its allocation may have been granted."""
        self._asked.set()

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
        await self._write_end(reason, error)

    async def _live(self) -> None:
        parent = telemetry.extract({"traceparent": self._endpoint.traceparent})
        attributes = {telemetry.WORKSPACE: self._replica.workspace, "lepton.replica": self._replica.id}
        starting = telemetry.tracer().start_span("start replica", context=parent, attributes=attributes)
        try:
            with trace.use_span(starting):
                allocation = await self._allocated()
            async with self._around.packages.hold(self._endpoint.files) as package:
                with trace.use_span(starting):
                    process, port = await self._launched(allocation, package)
                starting.end()
                await self._serve(process, port)
        finally:
            if starting.is_recording():
                starting.end()

    async def _allocated(self) -> Allocation:
        """Once compute has granted it."""
        needs = self._endpoint.needs
        request = CreateAllocationRequest(
            workspace=self._replica.workspace,
            holder=self._replica.holder,
            resources=wire.resources_message(needs),
            lease_seconds=self._around.settings.allocation_lease_seconds,
        )
        while True:
            self._asked.clear()
            try:
                allocation = await self._around.compute.CreateAllocation(request)
            except Transient as error:
                await self._note_waiting(error.detail)
            else:
                self._allocation_id = allocation.id
                if allocation.state == ALLOCATION_STATE_GRANTED:
                    return allocation
                await self._note_waiting(allocation.reason or "waits for an allocation")
            await self._pause()

    async def _pause(self) -> None:
        """Until it is worth asking again."""
        waits = [asyncio.create_task(event.wait()) for event in (self._asked, self._leaving)]
        await asyncio.wait(waits, timeout=ASK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._require_wanted()

    async def _launched(self, allocation: Allocation, package: Path) -> tuple[Process, int]:
        """The process and its port, once it answers."""
        self._require_wanted()
        await asyncio.to_thread(self._folder.mkdir, 0o700, True, True)
        try:
            self._process = process = await self._around.launcher.start(self._launch(allocation, package))
        except LaunchError as error:
            raise Failed(AppError(str(error), code="process_failed")) from error
        async with self._around.database.unit() as unit:
            started = {"allocation_id": allocation.id, "node": allocation.node, "owner": self._around.owner, "handle": process.handle}
            wanted = await replicas.note_started(unit, **self._where, **started)
        if not wanted:
            raise Unwanted
        port = await self._listening(process)
        async with self._around.database.unit() as unit:
            url = f"http://{HOST}:{port}"
            wanted = await replicas.note_ready(unit, **self._where, url=url, token=self._token, now=time.time())
        if not wanted:
            raise Unwanted
        self._log.info("replica_ready", model=self._replica.model, seconds=round(time.time() - self._replica.create_time, 3))
        self._changed()
        return process, port

    def _launch(self, allocation: Allocation, package: Path) -> Launch:
        endpoint, output = self._endpoint, self._folder / "log"
        threads = max(1, endpoint.cpu_millis // CORE_MILLIS)
        options = {
            "--package": package,
            # Under /v2 an endpoint is the model, by its own name.
            "--model-name": endpoint.name,
            "--model-version": endpoint.model_version,
            "--host": HOST,
            "--port": 0,
            "--threads": threads,
            "--ready-file": self._folder / "ready",
        }
        words = [str(word) for option in options.items() for word in option]
        return Launch(
            self._replica.id,
            [sys.executable, "-m", "services.deployment.replica", *words],
            {
                TOKEN: self._token,
                "OMP_NUM_THREADS": str(threads),
                "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in allocation.devices),
                # Where this code was found, it is found again.
                "PYTHONPATH": ":".join(path for path in sys.path if path),
            },
            cwd=self._folder,
            memory_bytes=endpoint.memory_bytes,
            stdout=output,
            stderr=output,
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
        if not await self._around.probe(HOST, port, self._token, self._around.settings.probe_seconds):
            raise Failed(AppError("the replica listens but does not answer its health check", code="process_hung"))
        return port

    async def _serve(self, process: Process, port: int) -> None:
        """While it is wanted and lives. Always raises."""
        ended = asyncio.create_task(process.wait())
        tended = asyncio.create_task(self._tend(port))
        tasks: list[asyncio.Task[Any]] = [ended, tended, asyncio.create_task(self._leaving.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._leaving.is_set():
                if not self._hurried:
                    await asyncio.wait([ended], timeout=self._around.settings.route_seconds)
                raise Unwanted
            if ended.done():
                raise Failed(await self._why(ended.result()))
            tended.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _tend(self, port: int) -> None:
        """Renews the allocation and looks whether it answers. Raises when it has to go."""
        settings, missed = self._around.settings, 0
        while True:
            await asyncio.sleep(min(settings.allocation_lease_seconds / 3, settings.probe_seconds))
            await self._renew()
            missed = 0 if await self._around.probe(HOST, port, self._token, settings.probe_seconds) else missed + 1
            if missed >= MISSED_PROBES:
                self._grace_seconds = 0
                raise Failed(AppError(f"the replica did not answer {missed} health checks in a row", code="process_hung"))

    async def _renew(self) -> None:
        try:
            await self._around.compute.RenewAllocation(RenewAllocationRequest(id=self._allocation_id))
        except (Conflict, NotFound) as error:
            self._grace_seconds = 0
            raise Unwanted(f"its allocation is over: {error.detail}") from error
        except AppError as error:
            self._log.warning("allocation_not_renewed", error=str(error))

    async def _why(self, exit: Exit) -> AppError:
        """What an end that nobody asked for means to the endpoint's owner."""
        if exit.oom:
            have = self._endpoint.memory_bytes // MIB
            return AppError(
                f"a replica needs more than its {have} MiB of memory; give it more resources.memory_bytes", code="out_of_memory"
            )
        said = telemetry.redacted(await asyncio.to_thread(_tail, self._folder / "log"))
        return AppError(f"the replica ended: {exit}" + (f"; it said: {said}" if said else ""), code="process_failed")

    async def _note_waiting(self, reason: str) -> None:
        async with self._around.database.unit() as unit:
            await replicas.note_waiting(unit, **self._where, allocation_id=self._allocation_id, reason=reason, now=time.time())
        self._changed()

    async def _write_end(self, reason: str, error: AppError | None) -> None:
        for attempt in range(WRITE_TRIES):
            try:
                async with self._around.database.unit() as unit:
                    await replicas.note_ended(
                        unit,
                        **self._where,
                        reason=reason,
                        now=time.time(),
                        allocation_id=self._allocation_id,
                        error=error.as_dict() if error else None,
                    )
                break
            except AppError as failure:
                # The reconciler will find a row without a process.
                self._log.warning("replica_end_not_written", tries=attempt + 1, error=str(failure))
                await asyncio.sleep(0.2 * attempt)
        self._changed()
        self._around.wake()

    def _changed(self) -> None:
        self._around.changes.notify(self._replica.workspace, self._replica.endpoint)

    def _require_wanted(self) -> None:
        if self._leaving.is_set():
            raise Unwanted


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
