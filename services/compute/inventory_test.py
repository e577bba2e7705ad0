"""What is offered of a machine: never more than others leave, and nothing of one that takes nothing."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton.common.v1.resource_pb2 import Accelerator
from lepton.compute.v1 import node_pb2
from services.compute.inventory import MAX_DEVICES, Machine, Pod, Taken, asked, offered

READY = {"type": "Ready", "status": "True"}
GIB = 2**30


def machine(
    allocatable: dict[str, str] | None = None,
    *,
    labels: dict[str, str] | None = None,
    ready: str = "True",
    unschedulable: bool = False,
    taints: list[tuple[str, str]] | None = None,
    system: str = "linux",
) -> Machine:
    return msgspec.convert(
        {
            "metadata": {"name": "m1", "labels": labels},
            "spec": {"unschedulable": unschedulable, "taints": [{"key": key, "effect": effect} for key, effect in taints or ()]},
            "status": {
                "allocatable": allocatable or {"cpu": "4", "memory": "8Gi"},
                "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
                "nodeInfo": {"architecture": "amd64", "operatingSystem": system},
            },
        },
        Machine,
    )


def pod(requests: dict[str, str], *, phase: str = "Running", role: str = "", **spec: Any) -> Pod:
    containers = [{"resources": {"requests": requests}}]
    body = {"metadata": {"name": "p"}, "spec": {"containers": containers, "nodeName": "m1", **spec}, "status": {"phase": phase}}
    if role:
        body["metadata"]["labels"] = {"lepton.dev/role": role}
    return msgspec.convert(body, Pod)


def offer(machine: Machine, *pods: Pod, tolerated: tuple[str, ...] = ("nvidia.com/gpu",)) -> node_pb2.Node | None:
    taken = Taken()
    for one in pods:
        taken.take(one)
    request = offered(machine, taken, pool_label="lepton.dev/pool", tolerated=tolerated)
    return None if request is None else request.node


def test_what_others_ask_for_is_not_offered_and_what_the_platform_runs_is() -> None:
    others = pod({"cpu": "500m", "memory": "1Gi"})
    done = pod({"cpu": "1", "memory": "1Gi"}, phase="Succeeded"), pod({"cpu": "1"}, phase="Failed")
    ours = pod({"cpu": "2", "memory": "2Gi"}, role="run"), pod({"cpu": "1"}, role="replica"), pod({"cpu": "1"}, role="batch")
    service = pod({"cpu": "250m"}, role="control")
    node = offer(machine(labels={"lepton.dev/pool": "big"}), others, *done, *ours, service, pod({}, phase="Pending"))
    assert node == node_pb2.Node(
        name="m1", pool="big", state=node_pb2.NODE_STATE_READY, cpu_millis=3250, memory_bytes=7 * GIB, cpu_model="amd64", cluster=True
    )


def test_devices_have_their_kinds_models_and_memory() -> None:
    found = offer(
        machine(
            {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "3", "amd.com/gpu": "1", "google.com/tpu": "4"},
            labels={
                "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
                "nvidia.com/gpu.memory": "81559",
                "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
            },
        ),
        pod({"nvidia.com/gpu": "1"}),
    )
    assert found is not None
    gpu, tpu = Accelerator.ACCELERATOR_GPU, Accelerator.ACCELERATOR_TPU
    assert [(d.index, d.accelerator, d.model, d.memory_bytes) for d in found.devices] == [
        (0, gpu, "NVIDIA-H100-80GB-HBM3", 81559 * 2**20),
        (1, gpu, "NVIDIA-H100-80GB-HBM3", 81559 * 2**20),
        (2, gpu, "amd.com/gpu", 0),
        *[(index, tpu, "tpu-v5-lite-podslice", 0) for index in range(4)],
    ]


def test_what_it_would_have_without_others_is_told_where_there_are_others() -> None:
    taken = Taken()
    one = machine({"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "3"})
    request = offered(one, taken, pool_label="", tolerated=())
    assert request is not None and not request.HasField("whole")
    taken.take(pod({"cpu": "1", "nvidia.com/gpu": "3"}))
    request = offered(one, taken, pool_label="", tolerated=())
    assert request is not None and not request.node.devices
    assert (request.whole.cpu_millis, request.whole.memory_bytes, len(request.whole.devices)) == (8000, 64 * GIB, 3)


def test_a_label_that_is_no_number_is_no_memory() -> None:
    for memory in ("lots", "", "-1", "\u0661"):
        node = offer(machine({"nvidia.com/gpu": "1"}, labels={"nvidia.com/gpu.memory": memory}))
        assert node is not None and [d.memory_bytes for d in node.devices] == [0]


@pytest.mark.parametrize(
    "one",
    [
        machine(ready="False"),
        machine(ready="Unknown"),
        machine(system="windows"),
        machine(taints=[("dedicated", "NoSchedule")]),
        machine(taints=[("dedicated", "NoExecute")]),
        msgspec.convert({"metadata": {"name": "m1"}}, Machine),
    ],
)
def test_what_is_not_ready_or_kept_for_others_is_no_node(one: Machine) -> None:
    assert offer(one) is None


@pytest.mark.parametrize(
    "one",
    [
        machine(unschedulable=True, taints=[("node.kubernetes.io/unschedulable", "NoSchedule")]),
        machine(unschedulable=True),
        machine(taints=[("node.kubernetes.io/disk-pressure", "NoSchedule")]),
    ],
)
def test_what_is_cordoned_or_ill_takes_nothing_new_and_lives(one: Machine) -> None:
    node = offer(one)
    assert node is not None and node.state == node_pb2.NODE_STATE_CORDONED


def test_work_goes_on_where_a_machine_is_kept_for_others_now() -> None:
    one = machine(taints=[("dedicated", "NoSchedule")])
    node = offer(one, pod({"cpu": "1"}, role="run"))
    assert node is not None and node.state == node_pb2.NODE_STATE_CORDONED
    assert offer(one, pod({"cpu": "1"}, role="run", phase="Succeeded")) is None
    assert offer(machine(ready="Unknown"), pod({"cpu": "1"}, role="run")) is None


def test_tolerated_taints_and_wishes_are_no_bar() -> None:
    node = offer(machine(taints=[("nvidia.com/gpu", "NoSchedule"), ("dedicated", "PreferNoSchedule")]))
    assert node is not None and node.state == node_pb2.NODE_STATE_READY


def test_a_pod_asks_with_its_sidecars_and_overhead() -> None:
    body = pod(
        {"cpu": "100m", "memory": "1Mi", "ephemeral-storage": "1Gi"},
        initContainers=[
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
            {"resources": {"requests": {"cpu": "1"}}},
            {},
        ],
        overhead={"cpu": "10m"},
    )
    assert asked(body) == {"cpu": 1060, "memory": 2**20 * 1000}


amounts = st.integers(0, 10**6).map(lambda n: f"{n}m")
memories = st.integers(0, 2**50).map(str)
counts = st.integers(0, 600).map(str)
requests = st.fixed_dictionaries({}, optional={"cpu": amounts, "memory": memories, "nvidia.com/gpu": counts})
pods = st.builds(pod, requests, phase=st.sampled_from(["Running", "Pending", "Failed"]), role=st.sampled_from(["", "run", "web"]))


@given(requests, st.lists(pods, max_size=5))
def test_what_is_offered_is_never_negative_nor_more_than_is_there(has: dict[str, str], there: list[Pod]) -> None:
    one = machine(has)
    empty, node = offer(one), offer(one, *there)
    assert empty is not None and node is not None
    assert 0 <= node.cpu_millis <= empty.cpu_millis
    assert 0 <= node.memory_bytes <= empty.memory_bytes
    assert len(node.devices) <= len(empty.devices) <= MAX_DEVICES
    assert [d.index for d in node.devices] == list(range(len(node.devices)))


@given(st.lists(pods, max_size=5), pods)
def test_another_pod_never_makes_more_room(there: list[Pod], more: Pod) -> None:
    one = machine({"cpu": "400", "memory": "1Ti", "nvidia.com/gpu": "300"})
    before, after = offer(one, *there), offer(one, *there, more)
    assert before is not None and after is not None
    assert (after.cpu_millis, after.memory_bytes) <= (before.cpu_millis, before.memory_bytes)
    assert after.cpu_millis <= before.cpu_millis and len(after.devices) <= len(before.devices)


def test_numbers_that_no_node_has_are_bounded() -> None:
    node = offer(machine({"cpu": "9E", "memory": "9E", "nvidia.com/gpu": "9E"}))
    assert node is not None
    assert (node.cpu_millis, node.memory_bytes, len(node.devices)) == (2**32 - 1, (2**63 - 1) // 1000, MAX_DEVICES)
