"""Components start in order, stop in reverse, and loops survive their steps."""

import asyncio

import pytest

from libs.lifecycle import Lifecycle, Loop
from libs.testing import Recorder


async def test_stop_is_the_reverse_of_start() -> None:
    log: list[str] = []
    lifecycle = Lifecycle([Recorder("a", log), Recorder("b", log)])
    await lifecycle.start()
    assert lifecycle.ready
    await lifecycle.stop()
    assert log == ["+a", "+b", "-b", "-a"]


async def test_a_failed_start_stops_what_had_started() -> None:
    log: list[str] = []
    lifecycle = Lifecycle([Recorder("a", log), Recorder("b", log, fails=True)])
    with pytest.raises(RuntimeError):
        await lifecycle.start()
    assert log == ["+a", "-a"]


async def test_a_loop_runs_when_woken_and_survives_a_failing_step() -> None:
    runs: list[int] = []
    ran = asyncio.Event()

    async def step() -> bool:
        runs.append(len(runs))
        ran.set()
        if len(runs) == 1:
            raise RuntimeError("once")
        return False

    loop = Loop("test", step, interval=60, max_pause=0.01)
    await loop.start()
    for _ in range(2):
        await asyncio.wait_for(ran.wait(), 1)
        ran.clear()
    loop.wake()
    await asyncio.wait_for(ran.wait(), 1)
    await loop.stop()
    assert len(runs) == 3


async def test_a_step_that_left_work_is_run_again_at_once() -> None:
    left = [3, 2, 1, 0]
    done = asyncio.Event()

    async def step() -> bool:
        more = left.pop(0) > 0
        if not more:
            done.set()
        return more

    loop = Loop("test", step, interval=60)
    await loop.start()
    await asyncio.wait_for(done.wait(), 1)
    await loop.stop()
