"""Keeps one program running: started again, ever more slowly, when it ends by itself."""

import asyncio
import time
from collections.abc import Callable

import structlog

from libs.launcher.launcher import Launch, Launcher, LaunchError, Process

log = structlog.get_logger()

PAUSES = (0.2, 1.0, 5.0, 15.0)
# After so long a run, an end is not the fault of the start.
STEADY_SECONDS = 60.0


class Keeper:
    """A component. `before` is called before each start but the first."""

    def __init__(
        self, launcher: Launcher, launch: Launch, *, grace_seconds: float = 5.0, before: Callable[[], None] = lambda: None
    ) -> None:
        self._launcher, self._launch, self._grace_seconds, self._before = launcher, launch, grace_seconds, before
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the running process; 0 while there is none."""
        return self._process.pid if self._process and self._process.alive() else 0

    async def start(self) -> None:
        self._process = await self._launcher.start(self._launch)
        self._watch = asyncio.create_task(self._keep(self._process), name=f"keep {self._launch.id}")

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        if self._process:
            await self._process.stop(self._grace_seconds)

    async def _keep(self, process: Process) -> None:
        ends = 0
        while True:
            started = time.monotonic()
            exit = await process.wait()
            ends = 0 if time.monotonic() - started > STEADY_SECONDS else ends + 1
            log.error("process_ended", process=self._launch.id, exit=str(exit), ends=ends)
            process = await self._again(ends)
            self._process = process

    async def _again(self, ends: int) -> Process:
        while True:
            await asyncio.sleep(PAUSES[min(ends, len(PAUSES) - 1)])
            try:
                self._before()
                return await self._launcher.start(self._launch)
            except LaunchError as error:
                ends += 1
                log.error("process_not_started", process=self._launch.id, error=str(error))
