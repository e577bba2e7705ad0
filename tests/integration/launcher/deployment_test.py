"""Deployment's real node and replica program, with the replica in a pod of a cluster."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton.deployment.v1 import deployment_service_pb2 as pb
from libs.launcher import Launch, Launcher, Process, open_launcher
from libs.lifecycle import Lifecycle
from libs.modelkit import package as packages
from libs.modelkit.export import export
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import fit_table
from libs.modelkit.target import fit_target
from libs.rpc import acting_for
from services.deployment.conftest import World, serving, ship, world
from services.deployment.node import Node
from services.deployment.runner import is_healthy
from tests.pods import launcher_settings

__all__ = ["world"]


class Anywhere:
    """A launcher for whose cluster compute's node is none, and whose image has the code elsewhere."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def start(self, launch: Launch) -> Process:
        environment = {**launch.env, "PYTHONPATH": "/app:/app/build/proto"}
        return await self._launcher.start(replace(launch, node="", cpu_millis=200, devices=0, env=environment))

    async def end(self, handle: str) -> bool:
        return await self._launcher.end(handle)

    async def forget(self, group: str) -> None:
        await self._launcher.forget(group)


@pytest.fixture
async def launcher() -> AsyncIterator[Any]:
    launcher, parts = open_launcher(launcher_settings())
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    yield Anywhere(launcher)
    await lifecycle.stop()


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = torch.nn.Linear(1, 1).double()
    fitted = fit_table({"a": np.array([1.0, 2.0, 4.0])}, {"a": "double"})
    target = fit_target("y", "double", np.array([10.0, 20.0, 40.0]), classify=False)
    made = Package("regression", "linear", {}, "float64", fitted, target, {}, tmp_path_factory.mktemp("package"))
    packages.write(made, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert export(module, np.ones((2, 1)), made.folder) == ""
    return made.folder


@pytest.mark.slow
async def test_a_replica_answers_at_its_pods_address(
    world: World, launcher: Any, package: Path, tmp_path: Path, make_planner: Callable[[], Any]
) -> None:
    await ship(world, package)
    settings = world.settings.model_copy(update={"replica_host": "0.0.0.0", "replica_port": 8000, "poll_seconds": 0.05})
    node = Node(world.database, world.peers.compute, launcher, world.store, world.changes, settings)
    planner = make_planner()
    await Lifecycle([planner, node]).start()
    async with serving(world, planner, tmp_path) as client:
        with acting_for("acme"):
            await client.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
        request = pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=5)
        replicas: Any = []
        for _ in range(12):
            replicas = (await client.ResolveEndpoint(request)).replicas
            if replicas:
                break
        with acting_for("acme"):
            endpoint = await client.GetEndpoint(pb.GetEndpointRequest(name="wdbc"))
        assert replicas, endpoint
        [replica] = replicas
        host, _, port = replica.url.removeprefix("http://").rpartition(":")
        assert (host != "127.0.0.1", port) == (True, "8000")
        assert await is_healthy(host, 8000, replica.token, 5)
        await planner.stop()
        await node.stop()
        assert not await is_healthy(host, 8000, replica.token, 2)


@pytest.fixture
def make_planner(world: World) -> Callable[[], Any]:
    return lambda: world.planner()
