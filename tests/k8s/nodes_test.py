"""What compute reads of a real cluster: what pods ask for is not offered, and a cordoned machine takes nothing new.

The machine that it cordons is a real one: it is opened again whatever happens.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lepton.compute.v1 import compute_service_pb2, node_pb2
from services.compute.cluster import ClusterAgent
from services.compute.settings import Settings
from tests.cluster import kubectl, require_cluster

ASKED_MILLIS, ASKED_BYTES = 7, 12_345_678


class Desk:
    """Stands in for compute: what was registered last, by name."""

    def __init__(self) -> None:
        self.nodes: dict[str, node_pb2.Node] = {}

    async def RegisterNode(self, request: compute_service_pb2.RegisterNodeRequest) -> node_pb2.Node:
        self.nodes[request.node.name] = request.node
        return request.node


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """With one service account in it that may what compute's agent has to, and no more; gone in the end."""
    require_cluster()
    name = f"lepton-nodes-{secrets.token_hex(4)}"
    try:
        kubectl("create", "namespace", name)
        kubectl("create", "serviceaccount", "agent", "--namespace", name)
        kubectl("create", "clusterrole", name, "--verb", "list", "--resource", "nodes,pods")
        kubectl("create", "clusterrolebinding", name, "--clusterrole", name, "--serviceaccount", f"{name}:agent")
        yield name
    finally:
        kubectl("delete", "clusterrolebinding", name, "--ignore-not-found", check=False)
        kubectl("delete", "clusterrole", name, "--ignore-not-found", check=False)
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false", check=False)


@pytest.fixture
async def look(namespace: str, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Reads the cluster once, as the service account; answers the nodes by name."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
    token = kubectl("create", "token", "agent", "--namespace", namespace).strip()
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    desk = Desk()
    agent = ClusterAgent(desk, Settings(kubeconfig=str(path)))

    async def look() -> dict[str, node_pb2.Node]:
        desk.nodes.clear()
        await agent.read()
        await agent.register()
        return dict(desk.nodes)

    yield look
    await agent.stop()


async def eventually(look: Callable[[], Any], holds: Callable[[dict[str, node_pb2.Node]], bool]) -> dict[str, node_pb2.Node]:
    """Looks until it holds: others use the cluster too, and what it is told it does in a moment."""
    for _ in range(60):
        if holds(nodes := await look()):
            return nodes
        await asyncio.sleep(0.5)
    raise AssertionError(f"not within 30 seconds; last seen: {nodes}")


def schedulable() -> str:
    """A machine that takes pods."""
    for node in json.loads(kubectl("get", "nodes", "--output", "json"))["items"]:
        if not node["spec"].get("unschedulable") and not node["spec"].get("taints"):
            return str(node["metadata"]["name"])
    pytest.fail("no machine of this cluster takes pods")


@contextmanager
def a_pod(namespace: str, node: str, role: str) -> Iterator[None]:
    """Bound to the machine. Whether its image is there does not matter: it holds what it asks for."""
    requests = {"cpu": f"{ASKED_MILLIS}m", "memory": str(ASKED_BYTES)}
    container = {"name": "main", "image": "lepton/none:none", "imagePullPolicy": "Never", "resources": {"requests": requests}}
    spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0}
    metadata = {"name": "asks", "labels": {"lepton.dev/role": role}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    kubectl("create", "--namespace", namespace, "--filename", "-", text=json.dumps(pod))
    try:
        yield
    finally:
        kubectl("delete", "pod", "asks", "--namespace", namespace, "--grace-period", "0", "--force")


@contextmanager
def cordoned(node: str) -> Iterator[None]:
    try:
        kubectl("cordon", node)
        yield
    finally:
        kubectl("uncordon", node)


async def test_what_pods_of_others_ask_for_is_not_offered_and_the_platform_s_own_is(look: Callable[[], Any], namespace: str) -> None:
    name = schedulable()
    for _ in range(30):
        before = (await look())[name]
        with a_pod(namespace, name, "run"):
            own = (await look())[name]
        with a_pod(namespace, name, "web"):
            others = (await look())[name]
        # Pods of others come and go meanwhile: then once more.
        if own == before == (await look())[name]:
            break
    else:
        pytest.fail("the cluster never stood still")
    assert (before.cpu_millis - others.cpu_millis, before.memory_bytes - others.memory_bytes) == (ASKED_MILLIS, ASKED_BYTES)
    assert 0 < others.cpu_millis < before.cpu_millis and others.memory_bytes > 0


async def test_a_cordoned_machine_takes_nothing_new_until_it_is_opened(look: Callable[[], Any], namespace: str) -> None:
    name = schedulable()
    assert (await look())[name].state == node_pb2.NODE_STATE_READY
    with cordoned(name):
        nodes = await eventually(look, lambda nodes: nodes[name].state == node_pb2.NODE_STATE_CORDONED)
        assert nodes[name].memory_bytes > 0
    await eventually(look, lambda nodes: nodes[name].state == node_pb2.NODE_STATE_READY)


def test_the_cluster_says_that_the_agent_may_no_more_than_it_needs(namespace: str) -> None:
    who = f"system:serviceaccount:{namespace}:agent"
    may = {
        (verb, what): kubectl("auth", "can-i", verb, what, "--all-namespaces", "--as", who, check=False).strip() == "yes"
        for verb in ("list", "watch", "get", "create", "patch", "delete")
        for what in ("nodes", "pods", "secrets")
    }
    assert {which for which, allowed in may.items() if allowed} == {("list", "nodes"), ("list", "pods")}
