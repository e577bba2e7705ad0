"""Components started in order and stopped in reverse."""

import asyncio
import signal
from collections.abc import Sequence
from typing import Protocol

import structlog

log = structlog.get_logger()


class Component(Protocol):
    """Something that runs. `start` returns once it is ready; `stop` finishes what it has in hand, also after a failed start."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Lifecycle:
    """A component made of components. A failed start stops what had been started and raises."""

    def __init__(self, components: Sequence[Component], *, grace_seconds: float = 10.0) -> None:
        self._components = list(components)
        self._started: list[Component] = []
        self._grace_seconds = grace_seconds

    @property
    def ready(self) -> bool:
        """Whether every component has been started."""
        return len(self._started) == len(self._components)

    async def start(self) -> None:
        """Starts the components in order."""
        try:
            for component in self._components:
                await component.start()
                self._started.append(component)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops the components in reverse; one that fails or hangs does not keep the others from stopping."""
        while self._started:
            component = self._started.pop()
            try:
                async with asyncio.timeout(self._grace_seconds):
                    await component.stop()
            except Exception:
                log.exception("component_stop_failed", component=type(component).__name__)

    async def run(self) -> None:
        """Starts, waits for SIGTERM or SIGINT, stops."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self.start()
        try:
            await stop.wait()
        finally:
            await self.stop()
