"""Nodes with their devices, and allocations: the entities of the compute service."""

from collections.abc import Sequence
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Column, Index, MetaData, text
from sqlmodel import Field, SQLModel

from libs.db import Int64
from services.compute.domain.placement import CORE, Need, Room, Waiting

QUEUED, GRANTED, RELEASED, EXPIRED = "queued", "granted", "released", "expired"
LIVE = (QUEUED, GRANTED)


class Table(SQLModel):
    metadata: ClassVar[MetaData] = MetaData()


class Node(Table, table=True):
    """A machine. `devices` are {"index", "accelerator", "model", "memory_bytes"} as its agent found them; times are seconds."""

    __tablename__ = "nodes"

    name: str = Field(primary_key=True)
    pool: str
    cpu_millis: int = Field(sa_type=Int64)
    memory_bytes: int = Field(sa_type=BigInteger)
    cpu_model: str
    devices: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    # What it would have if nobody but the platform used it: {"cpu_millis", "memory_bytes", "devices": number by accelerator}; else empty.
    whole: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    cordoned: bool = False
    # Its agent says that it takes nothing new, as a cluster does of a machine; `cordoned` is the operator's own word.
    closed: bool = False
    # Of a cluster: with its pool's others it may hold one allocation.
    cluster: bool = False
    lost: bool = False
    heartbeat_time: float

    @property
    def open(self) -> bool:
        """Whether it takes new allocations."""
        return not self.cordoned and not self.closed and not self.lost

    def room(self) -> Room:
        """All that it has."""
        kinds = sorted({d["accelerator"] for d in self.devices})
        devices = {kind: tuple(d["index"] for d in self.devices if d["accelerator"] == kind) for kind in kinds}
        return Room(self.name, self.cpu_millis, self.cpu_millis, self.memory_bytes, devices, self.open, self._group)

    @property
    def _group(self) -> str:
        return self.pool if self.cluster else ""

    def whole_room(self) -> Room:
        """All that it would have if others gave back what they hold there."""
        if not self.whole:
            return self.room()
        cpu_millis, devices = self.whole["cpu_millis"], {kind: tuple(range(count)) for kind, count in self.whole["devices"].items()}
        return Room(self.name, cpu_millis, cpu_millis, self.whole["memory_bytes"], devices, self.open, self._group)


class Allocation(Table, table=True):
    """A share of one node, or as much of each of several, asked for, held or given back; times are seconds."""

    __tablename__ = "allocations"
    __table_args__ = (
        Index("live_holders", "holder", unique=True, sqlite_where=text("end_time IS NULL"), postgresql_where=text("end_time IS NULL")),
        Index("allocations_by_workspace", "workspace", "id"),
        Index("allocations_by_state", "state"),
    )

    id: str = Field(primary_key=True)
    workspace: str
    holder: str
    accelerator: str
    count: int
    cpu_millis: int = Field(sa_type=Int64)
    memory_bytes: int = Field(sa_type=BigInteger)
    priority: int
    lease_seconds: int
    state: str
    reason: str = ""
    node: str = ""
    devices: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    workers: int = 1
    # Where there are several; `node` is the first.
    nodes: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    create_time: float
    grant_time: float | None = None
    renew_time: float | None = None
    end_time: float | None = None

    @property
    def need(self) -> Need:
        """What each of its workers asks of a node."""
        return Need(self.accelerator, 0 if self.accelerator == "cpu" else self.count, self.cpu_millis, self.memory_bytes)

    @property
    def waiting(self) -> Waiting:
        """Itself in the queue."""
        return Waiting(self.id, self.workspace, self.need, self.priority, self.create_time, self.workers)

    @property
    def places(self) -> list[tuple[str, Need, list[int]]]:
        """What it holds: nodes, how much of each, and which of its devices."""
        nodes = self.nodes or [self.node]
        need, each = self.need.times(self.workers // len(nodes)), len(self.devices) // len(nodes)
        return [(node, need, self.devices[number * each : (number + 1) * each]) for number, node in enumerate(nodes)]

    @property
    def lease_expire_time(self) -> float | None:
        """When it is taken back unless it is renewed."""
        return None if self.renew_time is None else self.renew_time + self.lease_seconds

    def grant(self, nodes: Sequence[str], devices: Sequence[int], now: float) -> None:
        """Gives it its place; the lease begins."""
        self.state, self.reason, self.node, self.devices = GRANTED, "", nodes[0], list(devices)
        self.nodes = list(nodes) if len(nodes) > 1 else []
        self.grant_time = self.renew_time = now

    def end(self, state: str, now: float) -> float:
        """Ends it as RELEASED or EXPIRED; answers the seconds to bill: to now, or to the last renewal."""
        self.state, self.reason, self.end_time = state, "", now
        if self.grant_time is None or self.renew_time is None:
            return 0.0
        return (now if state == RELEASED else self.renew_time) - self.grant_time


def default_cpu_millis(accelerator: str, count: int) -> int:
    """A core each: for a cpu allocation's cores, and beside every device."""
    return CORE * max(1, count)
