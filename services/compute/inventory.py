"""What a Kubernetes cluster's machines have for the platform, out of its nodes and pods. Talks to nobody.

Only the fields that count are decoded: that takes a thirtieth of the time of lightkube's whole models, and nothing else is kept.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec
from lightkube.core.resource import GlobalResource, NamespacedResourceG
from lightkube.resources import core_v1

from lepton.common.v1.resource_pb2 import Accelerator
from lepton.compute.v1 import node_pb2
from lepton.compute.v1.compute_service_pb2 import RegisterNodeRequest
from services.compute.domain.demand import MOST, demand, thousandths

# Pods of runs, replicas and batch predictions bear this label: compute counts them itself, by their allocations.
ROLE_LABEL = "lepton.dev/role"
OWN_ROLES = ("run", "replica", "batch")
FINISHED = ("Failed", "Succeeded")
# Set and taken away by Kubernetes itself, as things go on a machine; other keys keep machines for others.
PASSING_TAINTS = "node.kubernetes.io/"
BARRING = ("NoSchedule", "NoExecute")
CPU, MEMORY = "cpu", "memory"
MAX_CPU_MILLIS = 2**32 - 1
MAX_DEVICES = 256
MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """Devices as a device plugin offers them, and the labels that tell of them."""

    resource: str
    accelerator: Accelerator
    model_labels: tuple[str, ...]
    memory_label: str = ""


KINDS = (
    Kind(
        "nvidia.com/gpu",
        Accelerator.ACCELERATOR_GPU,
        ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator"),
        "nvidia.com/gpu.memory",
    ),
    Kind("amd.com/gpu", Accelerator.ACCELERATOR_GPU, ("amd.com/gpu.product-name",)),
    Kind("google.com/tpu", Accelerator.ACCELERATOR_TPU, ("cloud.google.com/gke-tpu-accelerator",)),
)
COUNTED = (CPU, MEMORY, *(kind.resource for kind in KINDS))


class Part(msgspec.Struct, frozen=True):
    """What is read of anything's metadata."""

    name: str = ""
    labels: dict[str, str] | None = None


class Resources(msgspec.Struct, frozen=True):
    requests: dict[str, str] | None = None


class Container(msgspec.Struct, frozen=True):
    resources: Resources | None = None
    restartPolicy: str | None = None


class PodSpec(msgspec.Struct, frozen=True):
    containers: list[Container] = []
    initContainers: list[Container] | None = None
    nodeName: str | None = None
    overhead: dict[str, str] | None = None
    resources: Resources | None = None


class PodStatus(msgspec.Struct, frozen=True):
    phase: str | None = None


class Pod(NamespacedResourceG, msgspec.Struct):
    """What is read of a pod."""

    _api_info = core_v1.Pod._api_info
    metadata: Part
    spec: PodSpec
    status: PodStatus = PodStatus()


class Taint(msgspec.Struct, frozen=True):
    key: str
    effect: str


class NodeSpec(msgspec.Struct, frozen=True):
    unschedulable: bool = False
    taints: list[Taint] | None = None


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class System(msgspec.Struct, frozen=True):
    architecture: str = ""
    operatingSystem: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    allocatable: dict[str, str] | None = None
    conditions: list[Condition] | None = None
    nodeInfo: System | None = None


class Machine(GlobalResource, msgspec.Struct):
    """What is read of a node."""

    _api_info = core_v1.Node._api_info
    metadata: Part
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


@dataclass
class Taken:
    """What the pods of others ask for on one machine, and whether runs or replicas of the platform are there."""

    amounts: dict[str, int] = field(default_factory=dict)
    ours: bool = False

    def take(self, pod: Pod) -> None:
        """Counts one pod; a finished one holds nothing."""
        if pod.status.phase in FINISHED:
            return
        if (pod.metadata.labels or {}).get(ROLE_LABEL) in OWN_ROLES:
            self.ours = True
            return
        for name, amount in asked(pod).items():
            self.amounts[name] = self.amounts.get(name, 0) + amount


def asked(pod: Pod) -> dict[str, int]:
    """What a pod asks of its machine."""
    spec = pod.spec
    return demand(
        [_requests(c.resources) for c in spec.containers],
        [(_requests(c.resources), c.restartPolicy == "Always") for c in spec.initContainers or ()],
        whole=_requests(spec.resources),
        overhead=_amounts(spec.overhead),
    )


def offered(machine: Machine, taken: Taken, *, pool_label: str, tolerated: Collection[str]) -> RegisterNodeRequest | None:
    """The machine as a node of the platform; None where it is none: not ready, not Linux, or kept for others and free of our work.

    Cordoned, or ill as Kubernetes finds it, it keeps what it has and takes nothing new; and so while our work runs on what is now
    kept for others.
    """
    system = machine.status.nodeInfo or System()
    barring = {t.key for t in machine.spec.taints or () if t.effect in BARRING and t.key not in tolerated}
    kept_for_others = any(not key.startswith(PASSING_TAINTS) for key in barring)
    if not _is_ready(machine) or system.operatingSystem not in ("", "linux") or (kept_for_others and not taken.ours):
        return None
    labels = machine.metadata.labels or {}
    has = _amounts(machine.status.allocatable)
    node = _holding({name: max(0, amount - taken.amounts.get(name, 0)) for name, amount in has.items()}, labels)
    node.name, node.pool, node.cpu_model = machine.metadata.name, labels.get(pool_label) or "default", system.architecture
    node.cluster = True
    node.state = node_pb2.NODE_STATE_CORDONED if machine.spec.unschedulable or barring else node_pb2.NODE_STATE_READY
    return RegisterNodeRequest(node=node, whole=_holding(has, labels) if taken.amounts else None)


def _holding(amounts: Mapping[str, int], labels: Mapping[str, str]) -> node_pb2.Node:
    return node_pb2.Node(
        cpu_millis=min(MAX_CPU_MILLIS, amounts.get(CPU, 0)),
        memory_bytes=amounts.get(MEMORY, 0) // 1000,
        devices=_devices(amounts, labels),
    )


def _is_ready(machine: Machine) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in machine.status.conditions or ())


def _devices(free: Mapping[str, int], labels: Mapping[str, str]) -> list[node_pb2.Device]:
    """Numbered by what they accelerate: which of them a pod gets, its device plugin says."""
    devices: list[node_pb2.Device] = []
    for kind in KINDS:
        model = next((labels[label] for label in kind.model_labels if labels.get(label)), kind.resource)
        memory = labels.get(kind.memory_label, "")
        memory_bytes = min(MOST, int(memory) * MIB) if memory.isascii() and memory.isdigit() else 0
        first = sum(d.accelerator == kind.accelerator for d in devices)
        for index in range(first, first + min(MAX_DEVICES, free.get(kind.resource, 0) // 1000)):
            devices.append(node_pb2.Device(index=index, accelerator=kind.accelerator, model=model, memory_bytes=memory_bytes))
    return devices


def _requests(resources: Resources | None) -> dict[str, int]:
    return _amounts(resources.requests if resources else None)


def _amounts(quantities: Mapping[str, str] | None) -> dict[str, int]:
    return {name: thousandths(quantities[name]) for name in COUNTED if name in quantities} if quantities else {}
