"""Training's real supervisor and engine, with the run in a pod: of a cluster, or of one that this machine plays."""

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lepton.training.v1 import training_service_pb2
from libs.launcher import Launch, Launcher, LauncherSettings, Process, open_launcher
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.landing import Limits
from libs.launcher.kubernetes.launcher import KubernetesLauncher, Watch
from libs.lifecycle import Lifecycle
from libs.testing import as_member
from services.training.conftest import PROLOGUE, Platform, put_split, running_platform, table_split
from services.training.supervisor.environment import engine_command
from tests.integration.launcher.played import PlayedCluster
from tests.pods import launcher_settings

IN_IMAGE = ["env", "PYTHONPATH=/app", "python", "-P", "-m", "services.training.engine"]


class Anywhere:
    """A launcher for whose cluster compute's node is none: compute is played here."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def start(self, launch: Launch) -> Process:
        return await self._launcher.start(replace(launch, node="", cpu_millis=200))

    async def end(self, handle: str) -> bool:
        return await self._launcher.end(handle)

    async def forget(self, group: str) -> None:
        await self._launcher.forget(group)


@dataclass
class Pods:
    """Where runs run, and the engine's command there."""

    launcher: Any
    command: Callable[[str], list[str]]


@pytest.fixture(params=["played", "cluster"])
async def pods(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pods]:
    if request.param == "cluster":
        launcher, parts = open_launcher(launcher_settings())
        command: Callable[[str], list[str]] = lambda folder: [*IN_IMAGE, folder]  # noqa: E731
    else:
        settings = LauncherSettings(url="kubernetes:", image="none", python=sys.executable, exchange_host="127.0.0.1")
        cluster: Any = PlayedCluster(tmp_path / "pods")
        exchange = Exchange("127.0.0.1", 0, Limits(1 << 30, 1 << 30, 1000))
        launcher = KubernetesLauncher(cluster, exchange, settings)
        parts, command = (exchange, Watch(cluster, launcher)), engine_command
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    yield Pods(Anywhere(launcher), command)
    await lifecycle.stop()


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path, startup_seconds=300.0) as running:
        yield running


@pytest.mark.slow
async def test_a_job_becomes_a_model_version(platform: Platform, pods: Pods, tmp_path: Path) -> None:
    await put_split(platform, table_split(tmp_path))
    await platform.worker(launcher=pods.launcher, command=pods.command)
    job = await platform.ended((await platform.submit()).id, seconds=240)
    assert (job.state, job.model_version, job.attempts) == ("succeeded", "m@1", 1), (job.reason, job.error)
    assert job.metrics["accuracy"] > 0.8
    assert await platform.metrics(job.id)


def played(pods: Pods, program: str) -> Callable[[str], list[str]]:
    """A run that does just that; its code is in its command, for its pod has no other files."""
    return lambda folder: [sys.executable if pods.command is engine_command else "python", "-c", PROLOGUE + program, folder]


async def test_a_killed_run_goes_on_from_the_checkpoint_that_came_home(platform: Platform, pods: Pods) -> None:
    program = """
start = resumed()
for e in range(start + 1, 4):
    step(e); checkpoint(e); time.sleep(0.5)
    if e == 2 and not start:
        time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)
finish()
"""
    await platform.worker(launcher=pods.launcher, command=played(pods, program))
    job = await platform.ended((await platform.submit()).id, seconds=120)
    assert (job.state, job.attempts) == ("succeeded", 2), (job.reason, job.error)
    assert [point.epoch for point in await platform.metrics(job.id)] == [1, 2, 3]
    assert any("signal 9" in line for line in await platform.logs(job.id))


async def test_a_cancel_takes_effect(platform: Platform, pods: Pods) -> None:
    await platform.worker(launcher=pods.launcher, command=played(pods, "step(); time.sleep(600)"))
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "running", seconds=60)
    with as_member():
        await platform.servicer.CancelTrainingJob(training_service_pb2.CancelTrainingJobRequest(id=job_id), None)
    job = await platform.ended(job_id, seconds=30)
    assert job.state == "cancelled"
