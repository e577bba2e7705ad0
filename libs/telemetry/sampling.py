"""Gauges that are looked up: in a loop, and only where somebody reads them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from libs.errors import AppError
from libs.lifecycle import Loop
from libs.telemetry.metrics import Gauge, metrics_on

log = structlog.get_logger()

SAMPLE_SECONDS = 15.0
TIMEOUT_SECONDS = 5.0


class Sampler:
    """A lifecycle component: awaits `sample`, which sets `gauges`, every 15 s. Without metrics it does nothing.

    What could not be looked up, or is looked up no more, is taken away (of `gauges` what is under `labels`): a last value would be
    taken for a present one.
    """

    def __init__(self, name: str, sample: Callable[[], Awaitable[None]], gauges: Sequence[Gauge], **labels: str) -> None:
        self._name, self._sample = name, sample
        self._gauges, self._labels = gauges, labels
        self._loop = Loop(f"{name}-gauges", self.look, interval=SAMPLE_SECONDS)
        self._started = False

    async def start(self) -> None:
        """Begins to look."""
        if metrics_on():
            self._started = True
            await self._loop.start()

    async def stop(self) -> None:
        """Looks no more."""
        if self._started:
            self._started = False
            await self._loop.stop()
            self._take_away()

    async def look(self) -> None:
        """Looks now."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._sample()
        except (AppError, TimeoutError) as error:
            self._take_away()
            log.warning("gauges_not_read", gauges=self._name, error=repr(error))

    def _take_away(self) -> None:
        for gauge in self._gauges:
            gauge.take_away(**self._labels)
