"""What the compute service does: one function a use case, each inside a unit that its caller opened."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from lepton.common.v1.resource_pb2 import Resources
from lepton.compute.v1 import node_pb2
from libs.db import Unit, new_id
from libs.errors import Conflict, Invalid, NotFound, Violation
from libs.telemetry import LONG_SECONDS, histogram
from services.compute import repository, wire
from services.compute.domain.placement import Room, in_order, place, weight, why_never
from services.compute.tables import EXPIRED, GRANTED, QUEUED, RELEASED, Allocation, Node, default_cpu_millis

_waits = histogram("lepton_allocation_wait_seconds", "From asking for an allocation to having it.", buckets=LONG_SECONDS)
DEFAULT_LEASE_SECONDS = 30
# A lost node is shown for a day: a container that is made anew is another one.
FORGOTTEN_SECONDS = 86400.0
# Between two sweeps, which come every second: longer, and renewals may have been lost meanwhile.
DEAF_SECONDS = 5.0
DEFAULT_MEMORY_BYTES = 2 * 2**30


class Scheduler:
    """Gives room to who waits, whenever something was asked for, given back or registered; in the same transaction."""

    def __init__(self, *, patience_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._patience_seconds = patience_seconds
        self.clock = clock
        # Nobody could renew before: a service or a database that was away is no reason to take anything back.
        self._listens_since = clock()
        self._swept = float("-inf")

    def swept(self) -> None:
        """The database answers. Where it had not for a while, holders and nodes have their whole time again."""
        now = self.clock()
        if now - self._swept > DEAF_SECONDS:
            self._listens_since = now
        self._swept = now

    def is_over(self, allocation: Allocation) -> bool:
        """Whether a granted one was not renewed in time."""
        if allocation.renew_time is None:
            return False
        return max(allocation.renew_time, self._listens_since) + allocation.lease_seconds < self.clock()

    def is_lost(self, node: Node, node_lease_seconds: float) -> bool:
        """Whether nobody hears of a node any more that was not lost."""
        return not node.lost and self.clock() - max(node.heartbeat_time, self._listens_since) > node_lease_seconds

    async def schedule(self, unit: Unit) -> None:
        """Grants what can be granted and says of the rest why it waits."""
        live = await repository.live(unit.session)
        if not any(a.state == QUEUED for a in live):
            return
        nodes = await repository.nodes(unit.session)
        queue = queue_order(live)
        now = self.clock()
        placements, reasons = place(
            [a.waiting for a in queue], free_rooms(nodes, live), [n.room() for n in nodes], now=now, patience=self._patience_seconds
        )
        by_id = {a.id: a for a in queue}
        for placement in placements:
            by_id[placement.id].grant(placement.nodes, placement.devices, now)
            waited = now - by_id[placement.id].create_time
            unit.after_commit(partial(_waits.record, max(0.0, waited)))
        for id, reason in reasons.items():
            by_id[id].reason = reason
        await unit.emit(*[wire.granted(by_id[p.id]) for p in placements])

    async def create_allocation(
        self, unit: Unit, *, workspace: str, holder: str, resources: Resources, lease_seconds: int, priority: int, workers: int = 1
    ) -> Allocation:
        if existing := await repository.live_of_holder(unit.session, workspace, holder):
            return existing
        accelerator = wire.ACCELERATOR_NAMES[resources.accelerator]
        count = resources.count or 1
        allocation = Allocation(
            id=new_id("al"),
            workspace=workspace,
            holder=holder,
            accelerator=accelerator,
            count=count,
            cpu_millis=resources.cpu_millis or default_cpu_millis(accelerator, count),
            memory_bytes=resources.memory_bytes or DEFAULT_MEMORY_BYTES,
            priority=priority,
            workers=workers or 1,
            lease_seconds=lease_seconds or DEFAULT_LEASE_SECONDS,
            state=QUEUED,
            create_time=self.clock(),
        )
        if never := why_never(allocation.waiting, [n.whole_room() for n in await repository.nodes(unit.session)]):
            raise Invalid.of([Violation("resources", never)], code="invalid_spec")
        await unit.insert(allocation)
        await self.schedule(unit)
        return allocation

    async def renew_allocation(self, unit: Unit, *, id: str) -> Allocation:
        allocation = await _get(unit, id)
        if allocation.end_time is not None:
            raise Conflict(f"allocation {id} is {allocation.state}: stop what runs under it", code="allocation_ended")
        if allocation.state == GRANTED:
            allocation.renew_time = self.clock()
        return allocation

    async def release_allocation(self, unit: Unit, *, id: str) -> Allocation:
        allocation = await _get(unit, id)
        if allocation.end_time is None:
            await self._end(unit, allocation, RELEASED)
            await self.schedule(unit)
        return allocation

    async def register_node(self, unit: Unit, *, found: node_pb2.Node, whole: node_pb2.Node | None = None) -> Node:
        node = await repository.node(unit.session, found.name)
        back, before = node is None or node.lost, node.room() if node else None
        if node is None:
            node = Node(name=found.name, pool="", cpu_millis=0, memory_bytes=0, cpu_model="", devices=[], whole={}, heartbeat_time=0)
            unit.session.add(node)
        node.pool, node.cpu_millis, node.memory_bytes = found.pool or "default", found.cpu_millis, found.memory_bytes
        node.cpu_model, node.lost, node.heartbeat_time = found.cpu_model, False, self.clock()
        node.whole = wire.whole(whole) if whole else {}
        node.cluster = found.cluster
        node.closed = found.state == node_pb2.NODE_STATE_CORDONED
        node.devices = [
            {"index": d.index, "accelerator": wire.ACCELERATOR_NAMES[d.accelerator], "model": d.model, "memory_bytes": d.memory_bytes}
            for d in found.devices
        ]
        if back:
            await unit.emit(wire.registered(node))
        if node.room() != before:
            await unit.session.flush()
            await self.schedule(unit)
        return node

    async def update_node(self, unit: Unit, *, name: str, state: int) -> Node:
        node = await get_node(unit, name)
        if state not in (node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_CORDONED):
            raise Invalid.of([Violation("state", "must be ready or cordoned", ("ready", "cordoned"))])
        if state == node_pb2.NODE_STATE_READY and node.closed and not node.cordoned:
            raise Conflict(f"node {name} is cordoned in its cluster: it is opened there")
        node.cordoned = state == node_pb2.NODE_STATE_CORDONED
        await unit.session.flush()
        await self.schedule(unit)
        return node

    async def expire(self, unit: Unit, *, node_lease_seconds: float) -> None:
        """Takes back what nobody renewed, marks nodes that nobody hears of, and gives the room to who waits."""
        for node in await repository.nodes(unit.session):
            if self.is_lost(node, node_lease_seconds):
                node.lost = True
                await unit.emit(wire.lost(node))
        for allocation in await repository.granted(unit.session):
            if self.is_over(allocation):
                await self._end(unit, allocation, EXPIRED)
        await unit.session.flush()
        await repository.forget_nodes(unit.session, self.clock() - FORGOTTEN_SECONDS)
        await self.schedule(unit)

    async def _end(self, unit: Unit, allocation: Allocation, state: str) -> None:
        was_granted = allocation.state == GRANTED
        seconds = allocation.end(state, self.clock())
        if was_granted:
            await unit.emit(wire.ended(allocation, seconds))


async def _get(unit: Unit, id: str) -> Allocation:
    allocation = await repository.allocation(unit.session, id)
    if allocation is None:
        raise NotFound(f"there is no allocation '{id}'")
    return allocation


async def get_node(unit: Unit, name: str) -> Node:
    node = await repository.node(unit.session, name)
    if node is None:
        raise NotFound.of("node", name, [n.name for n in await repository.nodes(unit.session)])
    return node


def queue_order(live: Sequence[Allocation]) -> list[Allocation]:
    """The queued ones, next first."""
    held: dict[str, int] = {}
    for allocation in live:
        if allocation.state == GRANTED:
            held[allocation.workspace] = held.get(allocation.workspace, 0) + weight(allocation.need) * allocation.workers
    by_id = {a.id: a for a in live}
    return [by_id[w.id] for w in in_order((a.waiting for a in live if a.state == QUEUED), held)]


def free_rooms(nodes: Sequence[Node], live: Sequence[Allocation]) -> list[Room]:
    """What is left of each node."""
    rooms = {n.name: n.room() for n in nodes}
    for allocation in live:
        for node, need, devices in allocation.places if allocation.state == GRANTED else ():
            if node in rooms:
                rooms[node] = rooms[node].without(need, devices)
    return list(rooms.values())
