"""The launcher on a played cluster: what it makes, in which order, and that nothing of it is left."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from libs.errors import Transient
from libs.launcher import Exit, Launch, LaunchError, LauncherSettings
from libs.launcher.kubernetes import process as process_module
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.landing import Limits
from libs.launcher.kubernetes.launcher import KubernetesLauncher, Watch
from libs.launcher.kubernetes.manifests import LAUNCH

SETTINGS = LauncherSettings(url="kubernetes:", image="i", exchange_port=0, exchange_host="127.0.0.1", place_seconds=0.3)


class PlayedCluster:
    """See Cluster. Jobs and Secrets in memory; pods are as the test says."""

    namespace, server = "here", "https://127.0.0.1:1"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.existing: dict[str, bool] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.statuses: dict[str, dict[str, Any]] = {}
        self.changes: asyncio.Queue[tuple[str, Pod]] = asyncio.Queue()
        self.away = self.slow = False
        self.warning = ""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def _say(self, words: str) -> None:
        self.said.append(words)
        if self.away:
            raise Transient("the cluster's API server cannot be reached")
        if self.slow:
            await asyncio.sleep(0.2)

    async def create_job(self, manifest: Mapping[str, Any]) -> str:
        await self._say("job")
        self.existing[manifest["metadata"]["name"]] = manifest["spec"]["suspend"]
        return f"uid-of-{manifest['metadata']['name']}"

    async def create_secret(self, manifest: Mapping[str, Any]) -> None:
        await self._say("secret")
        self.secrets[manifest["metadata"]["name"]] = dict(manifest)

    async def create_service(self, manifest: Mapping[str, Any]) -> None:
        await self._say("service")

    async def create_policy(self, manifest: Mapping[str, Any]) -> None:
        await self._say("policy")

    async def resume_job(self, name: str) -> None:
        await self._say("resume")
        self.existing[name] = False

    async def uid_of_job(self, name: str, namespace: str) -> str | None:
        return f"uid-of-{name}" if name in self.existing else None

    async def jobs(self) -> list[str]:
        await self._say("jobs")
        return list(self.existing)

    async def deployments(self) -> dict[str, int]:
        return {}

    async def pods_of(self, name: str) -> dict[str, str]:
        return {}

    async def pods(self) -> tuple[str, list[Pod]]:
        await self._say("pods")
        return "1", [self._pod(name) for name in self.statuses]

    async def watch_pods(self, version: str) -> AsyncIterator[tuple[str, Pod]]:
        while True:
            yield await self.changes.get()

    async def warning_of(self, uid: str) -> str:
        return self.warning

    async def remove(self, name: str, *, seconds: int = 1) -> None:
        await self._say("remove")
        self.existing.pop(name, None)
        if self.statuses.pop(name, None) is not None:
            self.changes.put_nowait(("DELETED", Pod.from_dict({"metadata": {"labels": {LAUNCH: name}}, "status": {}})))

    async def gone(self, name: str) -> bool:
        return name not in self.existing

    def _pod(self, name: str) -> Pod:
        return Pod.from_dict({"metadata": {"labels": {LAUNCH: name}}, "status": self.statuses[name]})

    async def show(self, program: dict[str, Any], **status: Any) -> str:
        """The pod of the one Job that is there, as it is now."""
        async with asyncio.timeout(5):
            while not [name for name, suspended in self.existing.items() if not suspended]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (name,) = self.existing
        container = {"name": "program", "image": "i", "imageID": "", "ready": True, "restartCount": 0, "state": program}
        self.statuses[name] = {"podIP": "10.0.0.7", "containerStatuses": [container], **status}
        self.changes.put_nowait(("MODIFIED", self._pod(name)))
        return name


def ended(code: int) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": json.dumps({"code": code, "signal": None, "oom": False})}}


class World:
    def __init__(self, settings: LauncherSettings = SETTINGS) -> None:
        self.cluster = PlayedCluster()
        self.exchange = Exchange("127.0.0.1", 0, Limits(1 << 20, 1 << 20, 10))
        self.launcher = KubernetesLauncher(self.cluster, self.exchange, settings)  # type: ignore[arg-type]
        self.watch = Watch(self.cluster, self.launcher)  # type: ignore[arg-type]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(process_module, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(process_module, "PODLESS_SECONDS", 0.1)
    monkeypatch.setattr("libs.launcher.kubernetes.launcher.PAUSE_SECONDS", 0.02)
    world = World()
    await world.exchange.start()
    await world.watch.start()
    yield world
    await world.watch.stop()
    await world.exchange.stop()


async def started(world: World, folder: Path) -> Any:
    starting = asyncio.create_task(world.launcher.start(Launch("run", ["x"], cwd=folder, stderr=folder / "err")))
    await world.cluster.show({"running": {}})
    return await starting


async def test_the_job_begins_once_its_secret_is_there(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    made = [word for word in world.cluster.said if word in ("job", "secret", "resume")]
    assert made == ["job", "secret", "resume"]
    assert (process.host, process.alive(), process.pid) == ("10.0.0.7", True, 0)


async def test_its_end_is_told_once_its_files_are_home(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await world.cluster.show(ended(5))
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    process.shipment.done = True
    process.shipment.changed()
    assert await waiting == Exit(5)
    assert (world.cluster.existing, world.launcher.processes) == ({}, {})


async def test_a_program_that_proves_missing_after_its_start_is_told_in_words(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    process.shipment.done = True
    await world.cluster.show({"terminated": {"exitCode": 127, "message": '{"errno": 2}'}})
    assert await process.wait() == Exit(127)
    assert "could not be started: No such file" in (tmp_path / "err").read_text()


async def test_a_courier_that_is_gone_does_not_keep_the_end(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "CARRIED_SECONDS", 0.1)
    process = await started(world, tmp_path)
    await world.cluster.show(ended(5))
    assert await process.wait() == Exit(5)


async def test_a_node_that_falls_silent_is_lost(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await started(world, tmp_path)
    monkeypatch.setattr(process_module, "LOST_SECONDS", 0.1)
    assert await process.wait() == Exit(None, signal.SIGKILL)
    assert "silent" in (tmp_path / "err").read_text()
    assert not world.cluster.existing


async def test_who_does_not_obey_is_removed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "OBEYED_SECONDS", 0.1)
    process = await started(world, tmp_path)
    assert await process.stop(0.1) == Exit(None, signal.SIGKILL)
    assert process.shipment.stop == 0.1
    assert not world.cluster.existing
    assert not (tmp_path / "err").exists()


async def test_a_start_broken_off_within_a_call_leaves_nothing(world: World, tmp_path: Path) -> None:
    world.cluster.slow = True
    for seconds in (0.05, 0.25, 0.45, 0.7):
        starting = asyncio.create_task(world.launcher.start(Launch("run", ["x"], cwd=tmp_path)))
        await asyncio.sleep(seconds)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.cancelled()
        assert (world.cluster.existing, world.launcher.processes) == ({}, {})


async def test_a_removal_that_failed_is_done_later(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    process.shipment.done = True
    await world.cluster.show(ended(0))
    world.cluster.away = True
    assert await process.wait() == Exit(0)
    assert world.cluster.existing
    world.cluster.away = False
    await world.launcher.sweep()
    assert not world.cluster.existing


async def test_a_cluster_that_is_away_is_no_fault_of_the_program(world: World, tmp_path: Path) -> None:
    world.cluster.away = True
    with pytest.raises(Transient):
        await world.launcher.start(Launch("run", ["x"], cwd=tmp_path))
    assert not world.launcher.processes


async def test_what_an_earlier_owner_left_is_removed_before_anything_begins() -> None:
    world = World()
    world.cluster.existing = {"run-before": False, "run-half-made": True}
    await world.watch.start()
    assert not world.cluster.existing
    await world.watch.stop()


async def test_a_pod_that_is_missing_from_the_list_was_deleted(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    process.listed(set())
    assert await process.wait() == Exit(None, signal.SIGKILL)
    assert "its pod was deleted" in (tmp_path / "err").read_text()


async def test_a_job_without_a_pod_is_asked_why(world: World, tmp_path: Path) -> None:
    world.cluster.warning = 'pods "run" is forbidden: exceeded quota'
    with pytest.raises(LaunchError, match="exceeded quota"):
        await world.launcher.start(Launch("run", ["x"], cwd=tmp_path))
    assert not world.cluster.existing


async def test_a_program_that_does_not_begin_in_time_is_given_up(tmp_path: Path) -> None:
    world = World(SETTINGS.model_copy(update={"start_seconds": 0.2}))
    await world.exchange.start()
    await world.watch.start()
    world.cluster.warning = "Failed to create pod sandbox"
    starting = asyncio.create_task(world.launcher.start(Launch("run", ["x"], cwd=tmp_path)))
    await world.cluster.show({"waiting": {"reason": "PodInitializing"}})
    with pytest.raises(LaunchError, match=r"did not begin within 0\.2 s: Failed to create pod sandbox"):
        await starting
    assert not world.cluster.existing
    await world.watch.stop()
    await world.exchange.stop()


async def test_a_handle_of_another_is_left_alone(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    for handle in ("", "12:34:56", "job/elsewhere/x/y", process.handle + "x", process.handle.replace("job/", "pod/")):
        assert not await world.launcher.end(handle)
    assert world.cluster.existing
    assert await world.launcher.end(process.handle)
