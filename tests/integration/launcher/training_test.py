"""Training's real supervisor and engine, with the run in a pod of a cluster."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.launcher import Launch, Launcher, Process, open_launcher
from libs.lifecycle import Lifecycle
from services.training.conftest import Platform, put_split, running_platform, table_split
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


@pytest.fixture
async def launcher() -> AsyncIterator[Anywhere]:
    launcher, parts = open_launcher(launcher_settings())
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    yield Anywhere(launcher)
    await lifecycle.stop()


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path, startup_seconds=300.0) as running:
        running.compute.error = None
        yield running


@pytest.mark.slow
async def test_a_job_becomes_a_model_version(platform: Platform, launcher: Anywhere, tmp_path: Path) -> None:
    await put_split(platform, table_split(tmp_path))
    await platform.worker(launcher=launcher, command=lambda folder: [*IN_IMAGE, folder])
    job = await platform.ended((await platform.submit()).id, seconds=240)
    assert (job.state, job.model_version, job.attempts) == ("succeeded", "m@1", 1), (job.reason, job.error)
    assert job.metrics["accuracy"] > 0.8
    assert await platform.metrics(job.id)


@pytest.mark.slow
async def test_a_job_that_no_node_has_room_for_says_so(platform: Platform, launcher: Anywhere, tmp_path: Path) -> None:
    await put_split(platform, table_split(tmp_path))
    await platform.worker(launcher=launcher, command=lambda folder: ["/no/such/program", folder])
    job = await platform.ended((await platform.submit()).id, seconds=240)
    assert job.state == "failed"
    assert job.error
    assert "/no/such/program" in job.error["detail"] or "No such file" in job.error["detail"]
