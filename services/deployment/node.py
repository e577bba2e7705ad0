"""Runs the replicas of one node: takes those whose allocation is there, ends those whose row says so, hands all back when it stops.

Knows rows and what runs here; which replicas there should be, and where, is the reconciler's affair.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from libs.db import Database
from libs.launcher import Launcher, signature
from libs.lifecycle import Loop
from libs.rpc import Client
from libs.storage import ArtifactStore
from services.deployment import repository
from services.deployment.changes import Changes
from services.deployment.domain.states import ReplicaState
from services.deployment.handlers import replicas
from services.deployment.package_cache import PackageCache
from services.deployment.runner import Probe, Run, Surroundings, is_healthy
from services.deployment.settings import Settings
from services.deployment.tables import Replica, Revision
from services.deployment.work_folder import WorkFolder

log = structlog.get_logger()

# For what replicas have in hand when this process is to end; a lifecycle waits 10 s for all of it.
STOP_SECONDS, SLACK_SECONDS = 4.0, 2.0
# The ready time of replicas is told in pieces that are no longer.
METER_SECONDS = 5.0
FORGET_SECONDS = 2.0
HANDED_BACK = "the process that ran it was stopped; another replica takes its place"


class Node:
    """A component. With `alone` it shares its process with the whole platform: it is woken, and when it stops nobody routes any more."""

    def __init__(
        self,
        database: Database,
        compute: Client,
        launcher: Launcher,
        store: ArtifactStore,
        changes: Changes,
        settings: Settings,
        *,
        alone: bool = False,
        probe: Probe = is_healthy,
    ) -> None:
        self._database, self._launcher, self._settings, self._alone = database, launcher, settings, alone
        self.owner = f"{signature()}/{secrets.token_hex(4)}"
        self._folder = WorkFolder(Path(settings.work_dir))
        # Batch predictions of this process use them too.
        self.packages = PackageCache(store, self._folder.packages, settings.cache_bytes)
        self.batches = self._folder.batches
        self._on_end: list[Callable[[], None]] = []
        self._around = Surroundings(
            self.owner, database, compute, launcher, self.packages, self._folder.replicas, changes, settings, self._ended, probe
        )
        self._runs: dict[str, Run] = {}
        # What the launcher may keep something for: group, and its endpoint's id.
        self._groups: dict[str, str] = {}
        interval = settings.reconcile_seconds if alone else settings.poll_seconds
        self._loop = Loop("deployment-node", self.step, interval=interval, max_pause=1.0)
        self._stopping = False
        self._said = self._looked = float("-inf")

    async def start(self) -> None:
        """Ends what an earlier process left here, before it takes anything."""
        left = await asyncio.to_thread(self._folder.open)
        await asyncio.to_thread(self.packages.clean)
        if left:
            await self._end_left(left)
        await asyncio.to_thread(self._folder.sign, self.owner)
        await self._loop.start()

    async def stop(self) -> None:
        """Hands every replica back: out of routing, then ended, while the reconciler places others."""
        self._stopping = True
        await self._loop.stop()
        try:
            await self._hand_back()
        except Exception:
            log.exception("replicas_not_handed_back")  # They end all the same, and say so if they can.
        grace = min(STOP_SECONDS, self._settings.grace_seconds)
        for run in self._runs.values():
            run.leave(hurried=self._alone, grace_seconds=grace)
        if self._runs:
            longest = self._settings.route_seconds + grace + SLACK_SECONDS
            _, late = await asyncio.wait([run.task for run in self._runs.values()], timeout=longest)
            for task in late:
                task.cancel()  # The rest is its nanny's; the row's lease runs out.
        self._folder.close()

    def wake(self) -> None:
        """Looks now."""
        self._loop.wake()

    def on_end(self, call: Callable[[], None]) -> None:
        """`call` is called after each end of a replica: another one may be wanted."""
        self._on_end.append(call)

    def claims(self, node: str) -> bool:
        """Whether it takes what is granted on that node."""
        return not self._stopping and self._settings.node in ("", node)

    def begin(self, replica: Replica, revision: Revision) -> None:
        """Runs what was claimed for it, unless it does already."""
        if replica.id not in self._runs and not self._stopping:
            self._groups[replica.group] = replica.endpoint_id
            self._runs[replica.id] = Run(self._around, replica, revision)

    def lease_expires(self) -> float:
        """Until when what it claims now is believed to be run."""
        return time.time() + self._settings.owner_lease_seconds

    def answers(self, replica: Replica) -> bool:
        """Whether a replica that is ready can be asked: one of this process whose end is not written yet can't."""
        run = self._runs.get(replica.id)
        return run.answers if run else replica.owner != self.owner

    def _answers_here(self, replica: Replica) -> bool:
        run = self._runs.get(replica.id)
        return run is not None and run.answers

    async def step(self) -> None:
        """One look at the rows."""
        await self._say_alive()
        runs = dict(self._runs)
        async with self._database.read() as session:
            rows = await repository.seen_by_node_of_all_workspaces(session, self.owner, self._settings.node)
        for replica in rows:
            await self._tend(replica)
        seen = {replica.id for replica in rows}
        for id, run in runs.items():
            if id in seen:
                continue
            if run.task.done():
                del self._runs[id]
            else:
                # Buried, because this process was not heard of: another one runs in its place.
                run.leave(hurried=True)
        await self._forget()

    async def _tend(self, replica: Replica) -> None:
        """Takes it, or lets it go."""
        run = self._runs.get(replica.id)
        if run is not None:
            if replica.state == ReplicaState.DRAINING:
                run.leave(hurried=replica.hurried)
        elif replica.state == ReplicaState.STARTING and not self._stopping:
            await self._take(replica)
        elif replica.owner == self.owner:
            # Claimed, and unwanted before it was begun.
            await self._end(replica, "")

    async def _take(self, replica: Replica) -> None:
        async with self._database.unit() as unit:
            where = {"workspace": replica.workspace, "id": replica.id}
            claimed = await replicas.claim(unit, **where, owner=self.owner, expires=self.lease_expires(), now=time.time())
        if claimed:
            self.begin(*claimed)

    async def _forget(self) -> None:
        """Tells the launcher of revisions that nothing serves here and nobody wants any more."""
        running = {run.group for run in self._runs.values()}
        idle = {group: endpoint for group, endpoint in self._groups.items() if group not in running}
        if not idle or time.monotonic() - self._looked < FORGET_SECONDS:
            return
        self._looked = time.monotonic()
        async with self._database.read() as session:
            wanted = {endpoint.group for endpoint in await repository.undeleted_of_all_workspaces(session, set(idle.values()))}
        for group in idle.keys() - wanted:
            del self._groups[group]
            await self._launcher.forget(group)

    async def _say_alive(self) -> None:
        """And for how long replicas were ready: what they cost is told while they live, not once they are killed."""
        if not self._runs or time.monotonic() - self._said < min(METER_SECONDS, self._settings.owner_lease_seconds / 3):
            return
        said = time.monotonic()
        async with self._database.unit() as unit:
            await repository.renew_leases(unit.session, self.owner, self.lease_expires())
            live = await repository.live_of_owner(unit.session, self.owner)
            await replicas.meter(unit, [replica for replica in live if self._answers_here(replica)], now=time.time())
        self._said = said

    async def _hand_back(self) -> None:
        async with self._database.unit() as unit:
            await replicas.hand_back(unit, owner=self.owner, reason=HANDED_BACK, expires=self.lease_expires(), now=time.time())
            left = await repository.live_of_owner(unit.session, self.owner)
        for replica in left:
            if replica.id not in self._runs:
                await self._end(replica, "")

    async def _end_left(self, owner: str) -> None:
        async with self._database.read() as session:
            left = await repository.live_of_owner(session, owner)
        for replica in left:
            if replica.handle:
                await self._launcher.end(replica.handle)
            await self._end(replica, "the process that ran it ended", lived=False)

    async def _end(self, replica: Replica, reason: str, *, lived: bool = True) -> None:
        where: dict[str, Any] = {"workspace": replica.workspace, "id": replica.id, "owner": replica.owner}
        async with self._database.unit() as unit:
            await replicas.note_ended(unit, **where, reason=reason, now=time.time(), lived=lived)
        log.info("replica_ended_unrun", replica_id=replica.id, endpoint=replica.endpoint, workspace=replica.workspace)
        self._ended()

    def _ended(self) -> None:
        for call in self._on_end:
            call()
