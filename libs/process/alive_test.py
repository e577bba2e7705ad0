"""The file that says that a process lives."""

import asyncio
from pathlib import Path

import pytest

from libs.process import Alive
from libs.testing import Recorder


async def test_the_file_of_a_live_process_is_there_from_ready_to_stop(tmp_path: Path) -> None:
    path, log = tmp_path / "alive", []
    path.touch()

    class Strict(Recorder):
        async def start(self) -> None:
            assert not path.exists(), "left by an earlier process"
            await super().start()

        async def stop(self) -> None:
            assert not path.exists(), "nobody should be sent here any more"
            await super().stop()

    alive = Alive(Strict("a", log), str(path))
    await alive.start()
    await asyncio.sleep(0.05)
    assert path.exists()
    await alive.stop()
    assert log == ["+a", "-a"]


async def test_a_failed_start_leaves_no_file(tmp_path: Path) -> None:
    alive = Alive(Recorder("a", [], fails=True), str(tmp_path / "alive"))
    with pytest.raises(RuntimeError):
        await alive.start()
    assert not (tmp_path / "alive").exists()
