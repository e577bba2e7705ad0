"""Between the contract's messages and the rows, and the events of the compute service."""

from collections import Counter
from typing import Any

from lepton.common.v1.resource_pb2 import Accelerator, Resources
from lepton.compute.v1 import allocation_pb2, events_pb2, node_pb2
from libs.events import Event
from services.compute import tables
from services.compute.domain.placement import Room

ACCELERATORS = {"cpu": Accelerator.ACCELERATOR_CPU, "gpu": Accelerator.ACCELERATOR_GPU, "tpu": Accelerator.ACCELERATOR_TPU}
ACCELERATOR_NAMES = {number: name for name, number in ACCELERATORS.items()} | {Accelerator.ACCELERATOR_UNSPECIFIED: "cpu"}
STATES = {
    tables.QUEUED: allocation_pb2.ALLOCATION_STATE_QUEUED,
    tables.GRANTED: allocation_pb2.ALLOCATION_STATE_GRANTED,
    tables.RELEASED: allocation_pb2.ALLOCATION_STATE_RELEASED,
    tables.EXPIRED: allocation_pb2.ALLOCATION_STATE_EXPIRED,
}
STATE_NAMES = {number: name for name, number in STATES.items()} | {allocation_pb2.ALLOCATION_STATE_UNSPECIFIED: ""}


def allocation(row: tables.Allocation, position: int = 0) -> allocation_pb2.Allocation:
    message = allocation_pb2.Allocation(
        id=row.id,
        workspace=row.workspace,
        holder=row.holder,
        resources=Resources(
            accelerator=ACCELERATORS[row.accelerator], count=row.count, memory_bytes=row.memory_bytes, cpu_millis=row.cpu_millis
        ),
        state=STATES[row.state],
        reason=row.reason,
        node=row.node,
        devices=row.devices,
        queue_position=position,
        workers=row.workers,
        nodes=row.nodes,
    )
    for name in ("create_time", "grant_time", "end_time", "lease_expire_time"):
        if (seconds := getattr(row, name)) is not None:
            getattr(message, name).FromNanoseconds(int(seconds * 1e9))
    return message


def node(row: tables.Node, free: Room, holders: dict[tuple[str, int], str]) -> node_pb2.Node:
    """`holders`: allocation ids that the caller may see, by accelerator and device index."""
    message = node_pb2.Node(
        name=row.name,
        pool=row.pool,
        state=_node_state(row),
        cpu_millis=row.cpu_millis,
        memory_bytes=row.memory_bytes,
        free_cpu_millis=max(0, free.cpu_millis),
        free_memory_bytes=max(0, free.memory_bytes),
        cpu_model=row.cpu_model,
        cluster=row.cluster,
        devices=[
            node_pb2.Device(
                index=d["index"],
                accelerator=ACCELERATORS[d["accelerator"]],
                model=d["model"],
                memory_bytes=d["memory_bytes"],
                allocation=holders.get((d["accelerator"], d["index"]), ""),
            )
            for d in row.devices
        ],
    )
    message.heartbeat_time.FromNanoseconds(int(row.heartbeat_time * 1e9))
    return message


def whole(message: node_pb2.Node) -> dict[str, Any]:
    """Of a machine that others use too: what is kept of all that it has."""
    devices = Counter(ACCELERATOR_NAMES[device.accelerator] for device in message.devices)
    return {"cpu_millis": message.cpu_millis, "memory_bytes": message.memory_bytes, "devices": dict(devices)}


def _node_state(row: tables.Node) -> node_pb2.NodeState:
    if row.lost:
        return node_pb2.NODE_STATE_LOST
    return node_pb2.NODE_STATE_READY if row.open else node_pb2.NODE_STATE_CORDONED


def granted(row: tables.Allocation) -> Event:
    return Event.of(events_pb2.AllocationGranted(allocation=allocation(row)), key=row.id)


def ended(row: tables.Allocation, seconds: float) -> Event:
    return Event.of(events_pb2.AllocationEnded(allocation=allocation(row), seconds=seconds), key=row.id)


def registered(row: tables.Node) -> Event:
    return Event.of(events_pb2.NodeRegistered(node=node(row, row.room(), {})), key=row.name)


def lost(row: tables.Node) -> Event:
    return Event.of(events_pb2.NodeLost(node=node(row, row.room(), {})), key=row.name)
