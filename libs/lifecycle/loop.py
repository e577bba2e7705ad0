"""A step that is run again and again: relays, reconcilers, heartbeats, sweeps."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from libs.errors import Transient

log = structlog.get_logger()


class Loop:
    """Runs `step` when woken and at least every `interval` seconds, one at a time.

    `step` answers True when it left work undone, and is then run again at once. When it raises, it is run again after a pause that
    grows to `max_pause` seconds; a loop never dies of its step.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[bool | None]], *, interval: float, max_pause: float = 10.0) -> None:
        self.name = name
        self._step = step
        self._interval = interval
        self._max_pause = max_pause
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def wake(self) -> None:
        """Makes the next step come now. Any number of wakes before it starts are one. Only from the loop's own thread."""
        self._wake.set()

    async def start(self) -> None:
        """Begins to run."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Lets a running step end, then ends; a step that takes longer than the caller waits is cancelled."""
        self._stopping = True
        self._wake.set()
        if self._task:
            try:
                await self._task
            finally:
                self._task.cancel()

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._wake.clear()
            try:
                again = await self._step()
                failures = 0
            except Exception as error:
                failures += 1
                again = False
                # Whom it needs is away: where in the code that was noticed says nothing.
                where = not isinstance(error, Transient)
                log.error("loop_step_failed", loop=self.name, failures=failures, error=str(error), exc_info=where)
            if not again and not self._stopping:
                await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        pause = self._interval
        if failures:
            pause = min(self._max_pause, 0.1 * 2**failures) * random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass
