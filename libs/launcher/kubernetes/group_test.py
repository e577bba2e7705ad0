"""A group on a played cluster: as many pods as launches, each bound to one, and none taken that is in use."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from libs.errors import Transient
from libs.launcher import Exit, Launch, LaunchError, LauncherSettings
from libs.launcher.kubernetes import group as group_module
from libs.launcher.kubernetes import process as process_module
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.landing import Limits
from libs.launcher.kubernetes.launcher import KubernetesLauncher, Watch
from libs.launcher.kubernetes.launcher_test import SETTINGS, ended
from libs.launcher.kubernetes.manifests import GROUP, LAUNCH


class PlayedCluster:
    """See Cluster. Its controller makes and takes pods when it is told to `settle`; what it has not been shown it does not know."""

    namespace, server = "here", "https://127.0.0.1:1"

    def __init__(self) -> None:
        self.replicas: dict[str, int] = {}
        self.templates: dict[str, Any] = {}
        self.secrets: list[str] = []
        self.here: dict[str, dict[str, Any]] = {}
        self.changes: asyncio.Queue[tuple[str, Pod]] = asyncio.Queue()
        self.numbers = count(1)
        self.eager, self.away, self.refused, self.warning = True, False, "", ""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def _answer(self) -> None:
        if self.away:
            raise Transient("the cluster's API server cannot be reached")
        if self.refused:
            raise LaunchError(f"the cluster refuses it: {self.refused}")

    async def jobs(self) -> list[str]:
        return []

    async def create_deployment(self, manifest: Mapping[str, Any]) -> str:
        self._answer()
        name = manifest["metadata"]["name"]
        self.replicas[name], self.templates[name] = manifest["spec"]["replicas"], manifest["spec"]["template"]
        return f"uid-of-{name}"

    async def create_secret(self, manifest: Mapping[str, Any]) -> None:
        self._answer()
        self.secrets.append(manifest["metadata"]["name"])

    async def scale(self, deployment: str, pods: int) -> None:
        self._answer()
        if deployment not in self.replicas:
            raise LaunchError(f'the cluster refuses it: deployments.apps "{deployment}" not found')
        self.replicas[deployment] = pods
        if self.eager:
            self.settle()

    async def deployments(self) -> dict[str, int]:
        return dict(self.replicas)

    async def why_podless(self, deployment: str) -> str:
        return self.warning

    async def remove_deployment(self, name: str) -> None:
        self._answer()
        self.replicas.pop(name, None)
        for pod in list(self.here):
            if self.here[pod]["metadata"]["labels"][GROUP] == name:
                self.take(pod)

    async def change_pod(self, pod: str, change: Mapping[str, Any]) -> None:
        self._answer()
        if pod in self.here:
            metadata = self.here[pod]["metadata"]
            metadata["labels"] |= change["metadata"]["labels"]
            self.here[pod]["spec"] = {"containers": [], "nodeName": "n"}
            self._show("MODIFIED", pod)

    async def remove_pod(self, pod: str, *, seconds: int = 1) -> None:
        self._answer()
        self.take(pod)
        if self.eager:
            self.settle()

    async def pods_of(self, name: str) -> dict[str, str]:
        return {pod: f"uid-of-{pod}" for pod in self.here if self.here[pod]["metadata"]["labels"].get(LAUNCH) == name}

    async def remove(self, name: str) -> None:
        for pod in await self.pods_of(name):
            await self.remove_pod(pod)

    async def gone(self, name: str) -> bool:
        return not await self.pods_of(name)

    async def pods(self) -> tuple[str, list[Pod]]:
        return "1", [Pod.from_dict(pod) for pod in self.here.values()]

    async def watch_pods(self, version: str) -> AsyncIterator[tuple[str, Pod]]:
        while True:
            yield await self.changes.get()

    def settle(self) -> None:
        """What a ReplicaSet's controller does: pods without a place are taken first."""
        if self.warning:
            return
        for name, wanted in self.replicas.items():
            have = [pod for pod, shown in self.here.items() if shown["metadata"]["labels"][GROUP] == name]
            for _ in range(wanted - len(have)):
                pod = f"{name}-{next(self.numbers)}"
                spec = {"containers": [], "schedulingGates": [{"name": "lepton.dev/launch"}]}
                self.here[pod] = {"metadata": {"name": pod, "uid": f"uid-of-{pod}", "labels": {GROUP: name}}, "spec": spec, "status": {}}
                self._show("ADDED", pod)
            have.sort(key=lambda pod: "nodeName" in self.here[pod]["spec"])
            for pod in have[: max(0, len(have) - wanted)]:
                self.take(pod)

    def take(self, pod: str) -> None:
        """Somebody deletes it."""
        shown = self.here.pop(pod, None)
        if shown:
            self.changes.put_nowait(("DELETED", Pod.from_dict(shown)))

    def show(self, pod: str, state: dict[str, Any], **more: Any) -> None:
        """How its program is."""
        container = {"name": "program", "image": "i", "imageID": "", "ready": True, "restartCount": 0, "state": state, **more}
        self.here[pod]["status"] = {"podIP": "10.0.0.7", "phase": "Running", "containerStatuses": [container]}
        self._show("MODIFIED", pod)

    def _show(self, change: str, pod: str) -> None:
        self.changes.put_nowait((change, Pod.from_dict(self.here[pod])))


class World:
    def __init__(self, settings: LauncherSettings = SETTINGS) -> None:
        self.cluster = PlayedCluster()
        self.exchange = Exchange("127.0.0.1", 0, Limits(1 << 20, 1 << 20, 10))
        self.launcher = KubernetesLauncher(self.cluster, self.exchange, settings)  # type: ignore[arg-type]
        self.watch = Watch(self.cluster, self.launcher)  # type: ignore[arg-type]
        self.ids = count(1)

    def starting(self, folder: Path) -> "asyncio.Task[Any]":
        (folder / str(number := next(self.ids))).mkdir()
        return asyncio.create_task(self.launcher.start(Launch(f"rep-{number}", ["x"], cwd=folder / str(number), group="line-1")))

    async def started(self, folder: Path) -> tuple[Any, str]:
        """A process that runs, and its pod."""
        before = set(self.bound)
        starting = self.starting(folder)
        await until(lambda: set(self.bound) - before)
        [pod] = set(self.bound) - before
        self.cluster.show(pod, {"running": {}})
        return await starting, pod

    @property
    def bound(self) -> list[str]:
        return [pod for pod, shown in self.cluster.here.items() if LAUNCH in shown["metadata"]["labels"]]

    @property
    def replicas(self) -> list[int]:
        return list(self.cluster.replicas.values())


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def finish(process: Any) -> Exit:
    """Its courier has carried home the last of it."""
    await until(lambda: process.shipment.last)
    process.shipment.done = True
    process.shipment.changed()
    return Exit(**vars(await process.wait()))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(process_module, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(process_module, "PODLESS_SECONDS", 0.1)
    monkeypatch.setattr(group_module, "PAUSE_SECONDS", 0.02)
    world = World()
    await world.exchange.start()
    await world.watch.start()
    yield world
    world.cluster.away, world.cluster.refused = False, ""
    await world.watch.stop()
    await world.exchange.stop()
    assert (world.cluster.replicas, world.cluster.here) == ({}, {})


async def test_a_group_has_one_deployment_with_a_pod_a_launch(world: World, tmp_path: Path) -> None:
    processes = [await world.started(tmp_path) for _ in range(3)]
    assert (world.replicas, len(world.cluster.secrets), len(world.bound)) == ([3], 1, 3)
    assert {process.handle for process, _ in processes} == {f"pod/here/{p.name}/uid-of-{pod}" for p, pod in processes}
    assert world.cluster.here[processes[0][1]]["metadata"]["labels"][LAUNCH] == processes[0][0].name
    assert all(process.alive() and process.host == "10.0.0.7" for process, _ in processes)


async def test_a_program_that_ends_is_told_though_its_container_is_begun_anew(world: World, tmp_path: Path) -> None:
    process, pod = await world.started(tmp_path)
    world.cluster.show(pod, {"running": {}}, lastState=ended(7), restartCount=1)
    assert await finish(process) == Exit(7)
    await until(lambda: world.replicas == [0] and not world.cluster.here)
    again, _ = await world.started(tmp_path)
    assert again.alive() and world.replicas == [1]
    assert len(world.cluster.secrets) == 1


async def test_how_it_ended_stays_when_its_containers_are_killed_with_the_pod(world: World, tmp_path: Path) -> None:
    process, pod = await world.started(tmp_path)
    world.cluster.show(pod, ended(7))
    await until(lambda: process.shipment.last)
    world.cluster.show(pod, ended(137))
    world.cluster.take(pod)
    assert await process.wait() == Exit(7)


async def test_the_number_is_lowered_once_the_cluster_has_seen_whose_pod_is_gone(world: World, tmp_path: Path) -> None:
    """A controller that hears of the number before it hears of the pod would take one that serves."""
    (_, first), (leaving, pod), (_, last) = [await world.started(tmp_path) for _ in range(3)]
    world.cluster.eager = False
    world.cluster.show(pod, ended(0))
    assert await finish(leaving) == Exit(0)
    await until(lambda: pod not in world.cluster.here)
    await asyncio.sleep(0.1)
    assert world.replicas == [3]
    world.cluster.settle()
    await until(lambda: world.replicas == [2])
    world.cluster.settle()
    assert set(world.cluster.here) == {first, last}


async def test_the_number_is_lowered_though_the_cluster_makes_no_more_pods(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "KNOWN_SECONDS", 0.1)
    _, (leaving, pod) = await world.started(tmp_path), await world.started(tmp_path)
    world.cluster.eager = False
    world.cluster.show(pod, ended(0))
    await finish(leaving)
    await until(lambda: world.replicas == [1])


async def test_a_pod_that_comes_back_waits_for_the_next_launch(world: World, tmp_path: Path) -> None:
    process, pod = await world.started(tmp_path)
    _, other = await world.started(tmp_path)
    starting = world.starting(tmp_path)
    await until(lambda: len(world.bound) == 3)
    world.cluster.take(pod)
    world.cluster.settle()
    assert not (await process.wait()).ok
    [third] = set(world.bound) - {other}
    world.cluster.show(third, {"running": {}})
    assert (await starting).alive()
    await until(lambda: world.replicas == [2] and len(world.cluster.here) == 2)


async def test_a_launch_whose_pod_is_taken_before_it_has_a_place_gets_another(world: World, tmp_path: Path) -> None:
    world.cluster.eager = False
    starting = world.starting(tmp_path)
    await until(lambda: world.replicas == [1])
    world.cluster.away = True
    world.cluster.settle()
    [first] = world.cluster.here
    await asyncio.sleep(0.1)
    world.cluster.take(first)
    world.cluster.away = False
    world.cluster.settle()
    await until(lambda: world.bound)
    [second] = world.bound
    assert second != first
    world.cluster.show(second, {"running": {}})
    assert (await starting).handle.endswith(f"uid-of-{second}")


@pytest.mark.parametrize("bound", [False, True])
async def test_a_start_broken_off_leaves_nothing(world: World, tmp_path: Path, bound: bool) -> None:
    world.cluster.eager = bound
    starting = world.starting(tmp_path)
    await until(lambda: world.replicas == [1] and len(world.bound) == bound)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    world.cluster.settle()
    await until(lambda: world.replicas == [0])
    world.cluster.settle()
    await until(lambda: not world.cluster.here)
    assert not world.launcher.processes


async def test_a_pod_whose_removal_failed_is_removed_later(world: World, tmp_path: Path) -> None:
    process, pod = await world.started(tmp_path)
    world.cluster.away = True
    world.cluster.show(pod, ended(0))
    assert await finish(process) == Exit(0)
    await asyncio.sleep(0.1)
    assert pod in world.cluster.here
    world.cluster.away = False
    await until(lambda: not world.cluster.here and world.replicas == [0])


async def test_what_the_cluster_refuses_is_said_in_words(world: World, tmp_path: Path) -> None:
    world.cluster.refused = "deployments is forbidden"
    with pytest.raises(LaunchError, match="deployments is forbidden"):
        await world.starting(tmp_path)
    world.cluster.refused = ""
    process, _ = await world.started(tmp_path)
    world.cluster.refused = "exceeded quota"
    with pytest.raises(LaunchError, match="could not be started: the cluster refuses it: exceeded quota"):
        await world.starting(tmp_path)
    assert process.alive()


async def test_a_deployment_without_pods_is_asked_why(world: World, tmp_path: Path) -> None:
    world.cluster.warning = 'pods "line-1" is forbidden: no PriorityClass'
    with pytest.raises(LaunchError, match="the cluster makes no pod for it"):
        await world.starting(tmp_path)


async def test_a_cluster_that_is_away_is_no_fault_of_the_program(world: World, tmp_path: Path) -> None:
    world.cluster.away = True
    with pytest.raises(Transient):
        await world.starting(tmp_path)
    world.cluster.away = False
    process, _ = await world.started(tmp_path)
    assert process.alive()


async def test_a_group_is_kept_without_pods_until_it_is_forgotten(world: World, tmp_path: Path) -> None:
    process, pod = await world.started(tmp_path)
    world.cluster.show(pod, ended(0))
    await finish(process)
    await until(lambda: world.replicas == [0])
    await world.launcher.sweep()
    assert world.replicas == [0]
    await world.launcher.forget("line")
    assert world.replicas == [0]
    await world.launcher.forget("line-1")
    assert world.replicas == []


async def test_what_an_earlier_owner_left_is_removed_before_anything_begins() -> None:
    world = World()
    world.cluster.replicas = {"line-1-before": 2}
    world.cluster.settle()
    await world.watch.start()
    assert (world.cluster.replicas, world.cluster.here) == ({}, {})
    await world.watch.stop()


async def test_a_number_that_somebody_else_changed_is_set_right(world: World, tmp_path: Path) -> None:
    process, _ = await world.started(tmp_path)
    [name] = world.cluster.replicas
    await world.cluster.scale(name, 3)
    await world.launcher.sweep()
    await until(lambda: world.replicas == [1] and len(world.cluster.here) == 1)
    assert process.alive()


async def test_a_deployment_that_was_taken_away_is_made_anew(world: World, tmp_path: Path) -> None:
    process, _ = await world.started(tmp_path)
    [name] = world.cluster.replicas
    await world.cluster.remove_deployment(name)
    assert not (await process.wait()).ok
    await world.launcher.sweep()
    again, _ = await world.started(tmp_path)
    assert again.alive()
    assert [*world.cluster.replicas] != [name]


async def test_a_handle_ends_its_process_alone(world: World, tmp_path: Path) -> None:
    (process, _), (other, _) = await world.started(tmp_path), await world.started(tmp_path)
    for handle in (process.handle[:-1], process.handle.replace("/here/", "/there/"), process.handle.replace("pod/", "job/", 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.cluster, "uid_of_job", no_job, raising=False)
            assert not await world.launcher.end(handle)
    assert await world.launcher.end(process.handle)
    assert not (await process.wait()).ok
    assert other.alive()


async def no_job(name: str, namespace: str) -> None:
    return None


async def test_what_a_courier_is_told_is_for_its_own_pod(world: World, tmp_path: Path) -> None:
    (process, pod), (other, _) = await world.started(tmp_path), await world.started(tmp_path)
    hello = {"id": "g", "token": process.shipment.token, "instance": f"uid-of-{pod}", "purpose": "fetch"}
    hello["id"] = process.shipment.id.partition("/")[0]
    assert world.exchange._known(hello) is process.shipment
    assert json.loads(process.shipment.told["task.json"])["roots"] == [str(process.launch.cwd)]
    assert process.shipment.token == other.shipment.token
    for changed in ({"token": "x"}, {"instance": "another"}):
        with pytest.raises(Exception, match="knows of no such launch"):
            world.exchange._known(hello | changed)
