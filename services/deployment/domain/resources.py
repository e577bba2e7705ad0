"""What a replica needs where the caller does not say."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

MIB = 2**20
SHARE_MILLIS = 100
CORE_MILLIS = 1000
# A replica of ONNX Runtime takes 65 MB before its model; one of torch takes 530 MB.
ONNX_MEMORY_BYTES = 256 * MIB
TORCH_MEMORY_BYTES = 1536 * MIB


@dataclass(frozen=True)
class Needs:
    """Of one replica; 0 and "" mean the default."""

    accelerator: str = ""
    count: int = 0
    memory_bytes: int = 0
    cpu_millis: int = 0

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on cores alone."""
        return self.accelerator in ("", "cpu")


@dataclass(frozen=True)
class Room:
    """All that one node has."""

    cpu_millis: int
    memory_bytes: int
    devices: tuple[str, ...]


def complete(needs: Needs, *, onnx: bool, weights_bytes: int) -> Needs:
    """With every default filled in: a tenth of a core where no cores are asked for, and memory for what runs the model."""
    millis = needs.cpu_millis or (needs.count * CORE_MILLIS or SHARE_MILLIS if needs.is_cpu else CORE_MILLIS)
    base = ONNX_MEMORY_BYTES if onnx and needs.is_cpu else TORCH_MEMORY_BYTES
    return replace(
        needs,
        accelerator=needs.accelerator or "cpu",
        count=needs.count or 1,
        cpu_millis=millis,
        # Loading holds the weights twice for a moment.
        memory_bytes=needs.memory_bytes or base + 2 * weights_bytes,
    )


def why_never(needs: Needs, rooms: Iterable[Room]) -> str:
    """Why no node could ever hold such a replica; empty where one could, and where no node is known yet."""
    rooms = list(rooms)
    if not rooms or any(_holds(room, needs) for room in rooms):
        return ""
    if not needs.is_cpu and not any(room.devices.count(needs.accelerator) >= needs.count for room in rooms):
        most = max(room.devices.count(needs.accelerator) for room in rooms)
        return f"no node has {needs.count} {needs.accelerator}; the most that one has is {most}"
    cores, memory = max(room.cpu_millis for room in rooms), max(room.memory_bytes for room in rooms)
    return (
        f"no node has {needs.cpu_millis / CORE_MILLIS:g} cores and {needs.memory_bytes // MIB} MiB for a replica; "
        f"the largest have {cores / CORE_MILLIS:g} cores, {memory // MIB} MiB"
    )


def _holds(room: Room, needs: Needs) -> bool:
    devices = 0 if needs.is_cpu else needs.count
    return (
        room.cpu_millis >= needs.cpu_millis
        and room.memory_bytes >= needs.memory_bytes
        and (not devices or room.devices.count(needs.accelerator) >= devices)
    )
