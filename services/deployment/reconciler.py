"""Makes of the rows what they say: asks compute for what is wanted, buries what nobody runs any more, gives back what ended ones held.

One instance does this at a time; the others answer calls. Starts no process: what a node does is in node.py.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from lepton.compute.v1.allocation_pb2 import ALLOCATION_STATE_GRANTED, Allocation
from lepton.compute.v1.compute_service_pb2 import CreateAllocationRequest, ReleaseAllocationRequest
from libs.db import Database
from libs.errors import AppError, NotFound, Transient
from libs.launcher import is_known_dead, signature
from libs.lifecycle import Loop, Rounds, Turn
from libs.rpc import acting_for
from services.deployment import repository, wire
from services.deployment.changes import Changes
from services.deployment.domain.rollout import plan, was_proven
from services.deployment.domain.states import ReplicaState
from services.deployment.handlers import replicas
from services.deployment.handlers.admission import Peers, give_back
from services.deployment.handlers.rollouts import Pair
from services.deployment.node import Node
from services.deployment.scaler import Scaler
from services.deployment.settings import Settings
from services.deployment.tables import Endpoint, Replica, Revision

log = structlog.get_logger()

# Between two questions for one allocation that waits.
ASK_AGAIN_SECONDS = 2.0
STALE_RESERVATION_SECONDS = 120.0
SWEEP_SECONDS = 3600.0
KEEP_ENDED_SECONDS = 86400.0
KEEP_BATCHES_SECONDS = 30 * 86400.0
KEEP_REVISIONS_SECONDS = 90 * 86400.0
LOST = "the process that ran it is gone"


class Reconciler:
    """A component. `here` is the node that shares its process, if one does: it is told at once."""

    def __init__(self, database: Database, peers: Peers, changes: Changes, settings: Settings, *, here: Node | None = None) -> None:
        self._database, self._peers, self._changes, self._settings, self._here = database, peers, changes, settings, here
        self.owner = f"{signature()}/{secrets.token_hex(4)}"
        self._loop = Loop("deployment-reconciler", self.step, interval=settings.reconcile_seconds)
        self._rounds = Rounds("deployment-reconciler")
        self._scaler = Scaler(database)
        self._leads = False
        self._lease_checked = self._swept = self._looked = float("-inf")
        self._looks_since = time.monotonic()

    async def start(self) -> None:
        if self._here:
            self._here.on_end(self.wake)
        await self._loop.start()

    async def stop(self) -> None:
        """Another instance goes on."""
        await self._loop.stop()
        if self._leads:
            await self._rounds.go(await self._returns())
            async with self._database.unit() as unit:
                await repository.resign(unit.session, self.owner)

    def wake(self) -> None:
        """Looks at everything now."""
        self._rounds.forget()
        self._loop.wake()
        self._wake_here()

    async def step(self) -> bool:
        """One look; True where it changed what there is to do."""
        if not await self._lead():
            return False
        async with self._database.read() as session:
            endpoints, live = await repository.live_of_all_workspaces(session)
            revisions = await repository.revisions_of_all_workspaces(session)
            traffic = await repository.traffic_of_all_workspaces(session, now=time.time())
        self._note_look()
        changed = await self._bury([replica for replica in live if self._is_lost(replica)])
        changed = await self._scaler.step(endpoints, live, revisions, traffic) or changed
        changed = await self._plan(endpoints, live, revisions) or changed
        if changed:
            self._wake_here()
            return True
        await self._rounds.go([*self._asks(revisions, live), *await self._returns()])
        await self._tidy()
        return False

    def _note_look(self) -> None:
        """Who could not look for a while can't say either who was silent meanwhile: the database may have been away for all."""
        now = time.monotonic()
        if now - self._looked > self._settings.owner_lease_seconds / 2:
            self._looks_since = now
        self._looked = now

    def _is_lost(self, replica: Replica) -> bool:
        """A row that nobody will bring to its end."""
        if not replica.owner:
            return replica.state == ReplicaState.DRAINING
        if self._here and replica.owner == self._here.owner:
            return False
        if is_known_dead(replica.owner):
            return True
        patience = self._settings.owner_lease_seconds / 2
        return replica.lease_expires < time.time() and time.monotonic() - self._looks_since >= patience

    async def _bury(self, lost: Sequence[Replica]) -> bool:
        for replica in lost:
            async with self._database.unit() as unit:
                await replicas.bury(unit, seen=replica, reason=LOST, now=time.time())
            self._changes.notify(replica.workspace, replica.endpoint)
            log.info("replica_buried", replica_id=replica.id, endpoint=replica.endpoint, workspace=replica.workspace, node=replica.node)
        return bool(lost)

    async def _plan(self, endpoints: Sequence[Endpoint], live: Sequence[Replica], revisions: Mapping[str, Sequence[Revision]]) -> bool:
        changed = False
        now = time.time()
        for endpoint in endpoints:
            own = [replica for replica in live if replica.endpoint_id == endpoint.id]
            if self._is_to_plan(endpoint, own, revisions.get(endpoint.id, ()), now):
                async with self._database.unit() as unit:
                    again = await repository.lock_endpoint(unit.session, endpoint.workspace, endpoint.id)
                    await replicas.reconcile(unit, again, now=now)
                self._changes.notify(endpoint.workspace, endpoint.name)
                changed = True
        return changed

    def _is_to_plan(self, endpoint: Endpoint, live: Sequence[Replica], revisions: Sequence[Revision], now: float) -> bool:
        seen = [replica.seen for replica in live]
        if endpoint.delete_time is not None:
            return bool(plan(endpoint.wanted, seen, now))
        pair = Pair.of(endpoint, revisions)
        if pair is None or pair.is_due(endpoint, live, now):
            return True
        if endpoint.failures and any(was_proven(r.ready_time, now) for r in live if r.state == ReplicaState.READY):
            return True
        wanted, beside = pair.wanted(endpoint, live)
        return bool(plan(wanted, seen, now, beside))

    def _asks(self, revisions: Mapping[str, Sequence[Revision]], live: Sequence[Replica]) -> list[Turn]:
        """Of compute, for every replica that nobody runs yet."""
        wanted = {(revision.endpoint_id, revision.number): revision for own in revisions.values() for revision in own}
        turns = []
        for replica in live:
            revision = wanted.get((replica.endpoint_id, replica.revision))
            if revision and replica.state == ReplicaState.STARTING and not replica.owner:
                # What was granted and is not begun on its node may be over by now.
                pause = self._settings.allocation_lease_seconds if replica.node else ASK_AGAIN_SECONDS
                turns.append(Turn(replica.id, partial(self._ask, replica, revision), pause))
        return turns

    async def _ask(self, replica: Replica, revision: Revision) -> None:
        with acting_for(replica.workspace, traceparent=revision.traceparent):
            try:
                allocation = await self._peers.compute.CreateAllocation(self._request(replica, revision))
                await self._note(replica, revision, allocation)
            except Transient as error:
                if not replica.node:
                    await self._note_waiting(replica, replica.allocation_id, error.detail)
            except AppError as error:
                await self._note_refused(replica, error)

    def _request(self, replica: Replica, revision: Revision) -> CreateAllocationRequest:
        return CreateAllocationRequest(
            workspace=replica.workspace,
            holder=replica.holder,
            resources=wire.resources_message(revision.needs),
            lease_seconds=self._settings.allocation_lease_seconds,
        )

    async def _note(self, replica: Replica, revision: Revision, allocation: Allocation) -> None:
        """Writes where it was granted, so that the node begins, or why it waits."""
        if allocation.state != ALLOCATION_STATE_GRANTED:
            await self._note_waiting(replica, allocation.id, allocation.reason or "waits for an allocation")
            return
        here = self._here if self._here and self._here.claims(allocation.node) else None
        granted: dict[str, Any] = {"allocation_id": allocation.id, "node": allocation.node, "devices": list(allocation.devices)}
        owner, expires = (here.owner, here.lease_expires()) if here else ("", 0.0)
        async with self._database.unit() as unit:
            where: dict[str, Any] = {"workspace": replica.workspace, "id": replica.id}
            claimed = await replicas.note_granted(unit, **where, **granted, owner=owner, expires=expires, now=time.time())
        if here and claimed:
            here.begin(claimed, revision)

    async def _note_waiting(self, replica: Replica, allocation_id: str, reason: str) -> None:
        async with self._database.unit() as unit:
            where = {"workspace": replica.workspace, "id": replica.id}
            await replicas.note_waiting(unit, **where, allocation_id=allocation_id, reason=reason, now=time.time())
        self._changes.notify(replica.workspace, replica.endpoint)

    async def _note_refused(self, replica: Replica, error: AppError) -> None:
        log.warning("replica_refused", replica_id=replica.id, code=error.code, reason=error.detail)
        async with self._database.unit() as unit:
            where: dict[str, Any] = {"workspace": replica.workspace, "id": replica.id, "owner": ""}
            await replicas.note_ended(unit, **where, reason=error.detail, now=time.time(), error=error.as_dict())
        self._changes.notify(replica.workspace, replica.endpoint)

    async def _returns(self) -> list[Turn]:
        """The allocations of replicas that have ended, and the quota of endpoints that were not made."""
        async with self._database.read() as session:
            held = await repository.unreleased_of_all_workspaces(session)
            stale = await repository.stale_reservations_of_all_workspaces(session, time.time() - STALE_RESERVATION_SECONDS)
        turns = [Turn(("allocation", replica.id), partial(self._release, replica)) for replica in held]
        for pending in stale:
            act = partial(give_back, self._database, self._peers, pending.workspace, pending.endpoint)
            turns.append(Turn(("quota", pending.workspace, pending.endpoint), act))
        return turns

    async def _release(self, replica: Replica) -> None:
        try:
            await self._peers.compute.ReleaseAllocation(ReleaseAllocationRequest(id=replica.allocation_id))
        except NotFound:
            log.info("allocation_unknown", replica_id=replica.id, allocation_id=replica.allocation_id)
        async with self._database.unit() as unit:
            await replicas.note_released(unit, workspace=replica.workspace, id=replica.id, allocation_id=replica.allocation_id)

    async def _tidy(self) -> None:
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        self._swept, now = time.monotonic(), time.time()
        async with self._database.unit() as unit:
            await repository.forget_before(
                unit.session, replicas=now - KEEP_ENDED_SECONDS, batches=now - KEEP_BATCHES_SECONDS, revisions=now - KEEP_REVISIONS_SECONDS
            )

    async def _lead(self) -> bool:
        """Whether this process plans; asked of the database every third of the lease."""
        lease = self._settings.leader_lease_seconds
        if self._leads and time.monotonic() - self._lease_checked < lease / 3:
            return True
        asked = time.monotonic()
        async with self._database.unit() as unit:
            leads = await repository.lead(unit.session, self.owner, now=time.time(), seconds=lease, is_dead=is_known_dead)
        if leads != self._leads:
            log.info("replicas_planned_here" if leads else "replicas_planned_elsewhere", owner=self.owner)
        self._leads, self._lease_checked = leads, asked
        return leads

    def _wake_here(self) -> None:
        if self._here:
            self._here.wake()
