"""Several workers on a played cluster: they begin together, and whoever fails first is the reason for the end of all."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from libs.launcher import Exit, Launch, LaunchError
from libs.launcher.kubernetes import gang as gang_module
from libs.launcher.kubernetes import process as process_module
from libs.launcher.kubernetes.gang import INDEX
from libs.launcher.kubernetes.launcher_test import World, ended, world
from libs.launcher.kubernetes.manifests import LAUNCH

__all__ = ["world"]
RUNNING: dict[str, Any] = {"running": {}}


async def show(world: World, index: int, program: dict[str, Any], *, change: str = "MODIFIED") -> None:
    """The pod of that worker of the one Job that is there."""
    async with asyncio.timeout(5):
        while not [name for name, suspended in world.cluster.existing.items() if not suspended]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (name,) = world.cluster.existing
    container = {"name": "program", "image": "i", "imageID": "", "ready": True, "restartCount": 0, "state": program}
    metadata = {"labels": {LAUNCH: name}, "annotations": {INDEX: str(index)}}
    pod = Pod.from_dict({"metadata": metadata, "status": {"podIP": f"10.0.0.{index}", "containerStatuses": [container]}})
    world.cluster.changes.put_nowait((change, pod))


def starting(world: World, folder: Path) -> "asyncio.Task[Any]":
    return asyncio.create_task(world.launcher.start(Launch("run", ["x"], cwd=folder, stderr=folder / "err", workers=3)))


async def started(world: World, folder: Path) -> Any:
    task = starting(world, folder)
    for index in range(3):
        await show(world, index, RUNNING)
    return await task


def failed(code: int, words: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": json.dumps({"code": code, "signal": None, "oom": False, "last_words": words})}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_module, "NEWS_SECONDS", 0.2)
    monkeypatch.setattr(gang_module, "CARRIED_SECONDS", 0.3)
    monkeypatch.setattr(process_module, "CARRIED_SECONDS", 0.1)


async def exit_of(process: Any) -> Exit:
    async with asyncio.timeout(5):
        exit: Exit = await process.wait()
        return exit


async def test_it_runs_once_all_do(world: World, tmp_path: Path) -> None:
    task = starting(world, tmp_path)
    await show(world, 0, RUNNING)
    await show(world, 2, RUNNING)
    await asyncio.sleep(0.1)
    assert not task.done()
    await show(world, 1, RUNNING)
    process = await task
    made = [word for word in world.cluster.said if word in ("job", "secret", "service", "policy", "resume")]
    assert made == ["job", "secret", "service", "policy", "resume"]
    assert (process.host, process.alive()) == ("10.0.0.0", True)


async def test_one_that_cannot_begin_takes_the_others_along(world: World, tmp_path: Path) -> None:
    task = starting(world, tmp_path)
    await show(world, 0, RUNNING)
    await show(world, 1, {"waiting": {"reason": "InvalidImageName", "message": "no such name"}})
    with pytest.raises(LaunchError, match="no such name"):
        await task
    assert not world.cluster.existing
    assert not world.launcher.processes
    assert not world.exchange._shipments


async def test_the_first_one_s_good_end_is_that_of_all(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await show(world, 1, ended(0))
    await show(world, 0, ended(0))
    assert await exit_of(process) == Exit(0)
    assert not world.cluster.existing


async def test_a_peer_that_fails_is_the_reason(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await show(world, 2, failed(5, "no such column"))
    await show(world, 0, ended(1))
    assert await exit_of(process) == Exit(5)
    assert (tmp_path / "err").read_text() == "\nworker 2 of 3 ended first: no such column\n"
    assert not world.exchange._shipments


async def test_a_first_one_that_does_not_end_is_not_waited_for_for_ever(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await show(world, 1, RUNNING, change="DELETED")
    assert not (await exit_of(process)).ok
    assert "worker 1 of 3 ended first: its pod was deleted" in (tmp_path / "err").read_text()
    assert not world.cluster.existing


async def test_memory_is_the_reason_whoever_is_seen_to_end_first(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await show(world, 0, ended(1))
    await show(world, 1, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    assert (await exit_of(process)).oom


async def test_the_first_one_s_own_failure_is_its_own(world: World, tmp_path: Path) -> None:
    process = await started(world, tmp_path)
    await show(world, 0, ended(3))
    assert await exit_of(process) == Exit(3)
    assert not (tmp_path / "err").exists()
