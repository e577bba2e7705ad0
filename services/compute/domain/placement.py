"""Which allocation gets which node or nodes, and why one waits.

Whole cores are counted against a node's cores. Requests below one core are shares: they are counted against a budget of the same size
of their own, so that a small replica never waits for a training job to end, nor the reverse.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import heapify, heappop, heappush
from typing import Any

CORE = 1000


@dataclass(frozen=True)
class Need:
    """What one allocation asks of one node; `accelerator` is "cpu", "gpu" or "tpu", `devices` how many of it (0 for cpu)."""

    accelerator: str
    devices: int
    cpu_millis: int
    memory_bytes: int

    @property
    def is_share(self) -> bool:
        """Less than a core."""
        return self.cpu_millis < CORE

    def times(self, workers: int) -> "Need":
        """Of so many workers on one node."""
        return replace(self, devices=self.devices * workers, cpu_millis=self.cpu_millis * workers, memory_bytes=self.memory_bytes * workers)

    def of(self, workers: int) -> str:
        """In words."""
        return str(self) if workers == 1 else f"{workers} workers with {self} each"

    def __str__(self) -> str:
        if self.devices:
            return f"{self.devices} {self.accelerator}"
        if self.is_share:
            return f"{self.cpu_millis / CORE:g} of a core"
        return f"{self.cpu_millis / CORE:g} core{'s' if self.cpu_millis > CORE else ''}"


@dataclass(frozen=True)
class Room:
    """What a node has: all of it, or what is free of it. Devices are indexes by accelerator.

    Nodes of one `group` may hold the workers of one allocation together; with none a node holds them all.
    """

    node: str
    cpu_millis: int
    share_millis: int
    memory_bytes: int
    devices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    open: bool = True
    group: str = ""

    def lacks(self, need: Need) -> str:
        """The first thing that does not suffice, in words; empty where all does."""
        if need.devices > len(self.devices.get(need.accelerator, ())):
            return need.accelerator
        if need.cpu_millis > (self.share_millis if need.is_share else self.cpu_millis):
            return "cores"
        if need.memory_bytes > self.memory_bytes:
            return "memory"
        return ""

    def without(self, need: Need, devices: Collection[int]) -> "Room":
        """What is left once `need` holds these device indexes. One that the node no longer reports takes another's place."""
        left = dict(self.devices)
        if has := left.get(need.accelerator):
            kept = [i for i in has if i not in devices]
            left[need.accelerator] = tuple(kept[: max(0, len(has) - len(devices))])
        return replace(
            self,
            cpu_millis=self.cpu_millis - (0 if need.is_share else need.cpu_millis),
            share_millis=self.share_millis - (need.cpu_millis if need.is_share else 0),
            memory_bytes=self.memory_bytes - need.memory_bytes,
            devices=left,
        )


@dataclass(frozen=True)
class Waiting:
    """An allocation in the queue; `since` in seconds."""

    id: str
    workspace: str
    need: Need
    priority: int
    since: float
    workers: int = 1


@dataclass(frozen=True)
class Placement:
    """Where an allocation goes, and on which devices: as many workers on each node, as many devices of each."""

    id: str
    nodes: tuple[str, ...]
    devices: tuple[int, ...]


def in_order(queue: Iterable[Waiting], held_millis: Mapping[str, int]) -> list[Waiting]:
    """Higher priority first; within one, workspaces take turns, the one that holds least beginning; then the oldest."""
    by_priority: dict[int, dict[str, list[Waiting]]] = {}
    for waiting in sorted(queue, key=lambda w: (w.since, w.id), reverse=True):
        by_priority.setdefault(waiting.priority, {}).setdefault(waiting.workspace, []).append(waiting)
    held = dict(held_millis)
    ordered: list[Waiting] = []
    for priority in sorted(by_priority, reverse=True):
        lines = by_priority[priority]
        turns = [(held.get(workspace, 0), line[-1].since, line[-1].id, workspace) for workspace, line in lines.items()]
        heapify(turns)
        while turns:
            _, _, _, workspace = heappop(turns)
            line = lines[workspace]
            first = line.pop()
            held[workspace] = held.get(workspace, 0) + weight(first.need) * first.workers
            ordered.append(first)
            if line:
                heappush(turns, (held[workspace], line[-1].since, line[-1].id, workspace))
    return ordered


def weight(need: Need) -> int:
    """How much a need counts when workspaces are compared: a device as much as eight cores."""
    return need.cpu_millis + 8 * CORE * need.devices


def place(
    queue: Sequence[Waiting], free: Sequence[Room], total: Sequence[Room], *, now: float, patience: float
) -> tuple[list[Placement], dict[str, str]]:
    """Grants in the queue's order, each on the open node that it fills best; and why each of the others waits.

    A smaller one may overtake a larger one that does not fit, until that has waited for `patience` seconds: then the node that comes
    nearest is kept for it.
    """
    left = {room.node: room for room in free}
    rooms = {room.node: room for room in free if room.open}
    placements: list[Placement] = []
    waits: list[Waiting] = []
    # Room only shrinks on the way: what did not fit for one does not fit for the next that asks the same.
    refused = set[tuple[Need, int]]()
    for waiting in queue:
        asked = (waiting.need, waiting.workers)
        if asked not in refused and (chosen := spread(*asked, rooms.values(), _left_over)):
            part = waiting.need.times(waiting.workers // len(chosen))
            devices: list[int] = []
            for room in chosen:
                given = room.devices.get(part.accelerator, ())[: part.devices]
                left[room.node] = rooms[room.node] = room.without(part, given)
                devices += given
            placements.append(Placement(waiting.id, tuple(room.node for room in chosen), tuple(devices)))
            continue
        refused.add(asked)
        waits.append(waiting)
        if rooms and now - waiting.since > patience:
            able = [room for room in total if room.node in rooms]
            for room in spread(*asked, able, lambda room, _: -rooms[room.node].cpu_millis):
                del rooms[room.node]
    why = cache(lambda need, workers: why_it_waits(need, workers, list(left.values()), total))
    return placements, {waiting.id: why(waiting.need, waiting.workers) for waiting in waits}


def spread(need: Need, workers: int, rooms: Iterable[Room], rank: Callable[[Room, Need], Any]) -> list[Room]:
    """The rooms for these workers, as many in each, those of least `rank`: one, else as few of one group as can be; none: they do not fit.

    As many in each, because a cluster can be told so, and then needs not be told which worker goes where.
    """
    for each in (count for count in range(workers, 0, -1) if workers % count == 0):
        part = need.times(each)
        fitting = sorted((room for room in rooms if not room.lacks(part)), key=lambda room: (rank(room, part), room.node))
        if each == workers and fitting:
            return fitting[:1]
        for group in sorted({room.group for room in fitting if room.group}):
            together = [room for room in fitting if room.group == group]
            if len(together) >= workers // each:
                return together[: workers // each]
    return []


def _left_over(room: Room, need: Need) -> tuple[int, int]:
    """Best fit: first spare other devices, then the fewest cores left over."""
    spare = sum(len(has) for has in room.devices.values()) - need.devices
    return spare, (room.share_millis if need.is_share else room.cpu_millis) - need.cpu_millis


def why_it_waits(need: Need, workers: int, free: Sequence[Room], total: Sequence[Room]) -> str:
    """One sentence for the person who waits."""
    what = need.of(workers)
    if not total:
        return f"waits for {what}: no node has registered yet"
    able = {room.node for room in total if not room.lacks(need)}
    if not spread(need, workers, total, _left_over):
        return f"waits for {what}: no node has so much now"
    rooms = [room for room in free if room.node in able]
    if not any(room.open for room in rooms):
        return f"waits for {what}: every node that has it is cordoned or lost"
    room = max((room for room in rooms if room.open), key=lambda r: (r.cpu_millis, r.node))
    whole = next(r for r in total if r.node == room.node)
    return f"waits for {what}: node {room.node} has {_amounts(room, whole, need.times(workers))} free"


def _amounts(room: Room, whole: Room, need: Need) -> str:
    match room.lacks(need):
        case "memory":
            return f"{_gib(room.memory_bytes)} of {_gib(whole.memory_bytes)} GiB"
        case "cores" if need.is_share:
            return f"shares for {room.share_millis / CORE:g} of {whole.share_millis / CORE:g} cores"
        case "cores" | "":
            return f"{room.cpu_millis / CORE:g} of {whole.cpu_millis / CORE:g} cores"
        case kind:
            return f"{len(room.devices.get(kind, ()))} of {len(whole.devices.get(kind, ()))} {kind}"


def why_never(waiting: Waiting, total: Sequence[Room]) -> str:
    """Why no node could hold it even if all were empty; empty where one could, or several can together, or where none is known yet."""
    if not total or spread(waiting.need, waiting.workers, total, _left_over):
        return ""
    need = waiting.need
    best = max(total, key=lambda r: (len(r.devices.get(need.accelerator, ())), r.cpu_millis, r.memory_bytes))
    kinds = "".join(f", {len(has)} {kind}" for kind, has in sorted(best.devices.items()) if has)
    each = "" if waiting.workers == 1 else ", nor can as many on each of several nodes of a cluster's pool"
    return (
        f"no node can hold {need.of(waiting.workers)} with {_gib(need.memory_bytes)} GiB{each}; the largest, {best.node}, has "
        f"{best.cpu_millis / CORE:g} cores, {_gib(best.memory_bytes)} GiB{kinds or ', no gpu, no tpu'}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
