"""What is kept comes back."""

import asyncio
import os
import signal
import sys

from libs.launcher import Keeper, Launch, SubprocessLauncher


async def test_a_killed_program_is_started_again() -> None:
    keeper = Keeper(SubprocessLauncher(), Launch("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"]), grace_seconds=1)
    await keeper.start()
    first = keeper.pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(10):
        while keeper.pid in (0, first):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    second = keeper.pid
    await keeper.stop()
    assert keeper.pid == 0
    assert second != first
