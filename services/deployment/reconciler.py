"""Makes of the rows what they say: starts and ends replicas, buries those that are dead, gives back what they held.

One instance does this at a time; the others answer calls. How one replica is run is in runner.py.
"""

import asyncio
import os
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from lepton.compute.v1.compute_service_pb2 import ReleaseAllocationRequest
from libs.db import Database
from libs.errors import AppError, NotFound
from libs.launcher import Launcher, handle_of, runs_still
from libs.lifecycle import Loop
from libs.storage import ArtifactStore
from services.deployment import repository
from services.deployment.changes import Changes
from services.deployment.domain.rollout import plan, was_proven
from services.deployment.domain.states import ReplicaState
from services.deployment.handlers import replicas
from services.deployment.handlers.admission import Peers, give_back
from services.deployment.package_cache import PackageCache
from services.deployment.runner import Probe, Run, Surroundings, is_healthy
from services.deployment.settings import Settings
from services.deployment.tables import Endpoint, Replica

log = structlog.get_logger()

STOP_SECONDS = 3.0
STALE_RESERVATION_SECONDS = 120.0
SWEEP_SECONDS = 3600.0
KEEP_ENDED_SECONDS = 86400.0
KEEP_BATCHES_SECONDS = 30 * 86400.0


class Reconciler:
    """A component."""

    def __init__(
        self,
        database: Database,
        peers: Peers,
        launcher: Launcher,
        store: ArtifactStore,
        changes: Changes,
        settings: Settings,
        *,
        probe: Probe = is_healthy,
    ) -> None:
        self._database, self._peers, self._launcher, self._settings = database, peers, launcher, settings
        work = Path(settings.work_dir)
        self._replicas_folder, self._packages_folder = work / "replicas", work / "packages"
        self._packages = PackageCache(store, self._packages_folder, settings.cache_bytes)
        self.owner = f"{socket.gethostname()}/{handle_of(os.getpid())}/{secrets.token_hex(4)}"
        self._around = Surroundings(self.owner, database, peers.compute, launcher, self._packages, changes, settings, self.wake, probe)
        self._runs: dict[str, Run] = {}
        self._loop = Loop("deployment-reconciler", self.step, interval=settings.reconcile_seconds)
        self._leads = False
        self._lease_checked = self._swept = float("-inf")

    async def start(self) -> None:
        """Ends what an earlier process left, before anybody asks where replicas are."""
        await asyncio.to_thread(self._prepare)
        await self.step()
        await self._loop.start()

    async def stop(self) -> None:
        """Ends every replica of this process; the next one starts them again."""
        await self._loop.stop()
        await self._end_runs()
        if self._leads:
            await self._release()
            async with self._database.unit() as unit:
                await repository.resign(unit.session, self.owner)

    def wake(self) -> None:
        """Looks at everything now."""
        for run in self._runs.values():
            run.ask_again()
        self._loop.wake()

    def answers(self, replica: Replica) -> bool:
        """Whether a replica that is ready can be asked: one of this process whose end is not written yet can't."""
        run = self._runs.get(replica.id)
        return run.answers if run else replica.owner != self.owner

    async def step(self) -> bool:
        """One look; True where it changed what there is to do."""
        if not await self._lead():
            await self._end_runs()
            return False
        async with self._database.read() as session:
            endpoints, live = await repository.live_of_all_workspaces(session)
        changed = await self._bury([replica for replica in live if self._is_dead(replica)])
        changed = await self._plan(endpoints, live) or changed
        if changed:
            return True
        by_id = {endpoint.id: endpoint for endpoint in endpoints}
        for replica in live:
            self._tend(replica, by_id[replica.endpoint_id])
        self._runs = {id: run for id, run in self._runs.items() if not run.task.done()}
        await self._release()
        await self._tidy()
        return False

    def _tend(self, replica: Replica, endpoint: Endpoint) -> None:
        """Starts it, or lets it go."""
        run = self._runs.get(replica.id)
        if replica.state == ReplicaState.STARTING and run is None:
            self._runs[replica.id] = Run(self._around, replica, endpoint)
        elif replica.state == ReplicaState.DRAINING and run is not None:
            run.leave(hurried=replica.hurried)

    def _is_dead(self, replica: Replica) -> bool:
        """A row without a process: its owner is gone, or has lost it."""
        if replica.id in self._runs:
            return False
        return bool(replica.owner) or replica.state == ReplicaState.DRAINING

    async def _bury(self, dead: Sequence[Replica]) -> bool:
        for replica in dead:
            if replica.handle and replica.owner.split("/")[0] == self.owner.split("/")[0]:
                await self._launcher.end(replica.handle)
            async with self._database.unit() as unit:
                await replicas.note_ended(
                    unit,
                    workspace=replica.workspace,
                    id=replica.id,
                    reason=replica.reason or "the process that ran it ended",
                    now=time.time(),
                )
            log.info("replica_buried", replica_id=replica.id, endpoint=replica.endpoint, workspace=replica.workspace)
        return bool(dead)

    async def _plan(self, endpoints: Sequence[Endpoint], live: Sequence[Replica]) -> bool:
        changed = False
        now = time.time()
        for endpoint in endpoints:
            own = [replica for replica in live if replica.endpoint_id == endpoint.id]
            forgivable = endpoint.failures and any(was_proven(r.ready_time, now) for r in own if r.state == ReplicaState.READY)
            if plan(endpoint.wanted, [replica.seen for replica in own], now) or forgivable:
                async with self._database.unit() as unit:
                    again = await repository.lock_endpoint(unit.session, endpoint.workspace, endpoint.id)
                    await replicas.reconcile(unit, again, now=now)
                changed = True
        return changed

    async def _release(self) -> None:
        """Gives back the allocations of replicas that have ended, and the quota of endpoints that were not made."""
        async with self._database.read() as session:
            held = await repository.unreleased_of_all_workspaces(session)
            stale = await repository.stale_reservations_of_all_workspaces(session, time.time() - STALE_RESERVATION_SECONDS)
        for replica in held:
            try:
                await self._peers.compute.ReleaseAllocation(ReleaseAllocationRequest(id=replica.allocation_id))
            except NotFound:
                log.info("allocation_unknown", replica_id=replica.id, allocation_id=replica.allocation_id)
            except AppError as error:
                log.warning("allocation_release_put_off", replica_id=replica.id, error=str(error))
                continue
            async with self._database.unit() as unit:
                await replicas.note_released(unit, workspace=replica.workspace, id=replica.id, allocation_id=replica.allocation_id)
        for pending in stale:
            try:
                await give_back(self._database, self._peers, pending.workspace, pending.endpoint)
            except AppError as error:
                log.warning("quota_release_put_off", endpoint=pending.endpoint, error=str(error))

    async def _tidy(self) -> None:
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept, now = time.monotonic(), time.time()
        async with self._database.unit() as unit:
            await repository.forget_before(unit.session, replicas=now - KEEP_ENDED_SECONDS, batches=now - KEEP_BATCHES_SECONDS)

    async def _lead(self) -> bool:
        """Whether this process runs the replicas; asked of the database every third of the lease."""
        lease = self._settings.leader_lease_seconds
        if self._leads and time.monotonic() - self._lease_checked < lease / 3:
            return True
        asked = time.monotonic()
        async with self._database.unit() as unit:
            leads = await repository.lead(unit.session, self.owner, now=time.time(), seconds=lease, is_dead=self._owner_is_dead)
        if leads != self._leads:
            log.info("replicas_led" if leads else "replicas_led_elsewhere", owner=self.owner)
        self._leads, self._lease_checked = leads, asked
        return leads

    def _owner_is_dead(self, owner: str) -> bool:
        """Known only of processes on this machine."""
        host, _, rest = owner.partition("/")
        return host == self.owner.split("/")[0] and not runs_still(rest.rpartition("/")[0])

    async def _end_runs(self) -> None:
        """All of this process, now."""
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.leave(hurried=True, grace_seconds=STOP_SECONDS)
        if runs:
            await asyncio.wait([run.task for run in runs.values()], timeout=2 * STOP_SECONDS)

    def _prepare(self) -> None:
        for folder in (self._replicas_folder, self._packages_folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._packages.clean()
        for left in self._replicas_folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
