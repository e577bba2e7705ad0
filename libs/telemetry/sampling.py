"""Gauges that are looked up: in a loop, and only where somebody reads them."""

from collections.abc import Awaitable, Callable, Sequence

from libs.lifecycle import Loop
from libs.telemetry.metrics import Gauge, metrics_on

SAMPLE_SECONDS = 15.0


class Sampler:
    """A lifecycle component: awaits `sample`, which sets `gauges`, every 15 s. Without metrics it does nothing."""

    def __init__(self, name: str, sample: Callable[[], Awaitable[None]], gauges: Sequence[Gauge] = (), **labels: str) -> None:
        self._loop = Loop(f"{name}-gauges", sample, interval=SAMPLE_SECONDS)
        self._gauges, self._labels = gauges, labels
        self._started = False

    async def start(self) -> None:
        """Begins to look."""
        if metrics_on():
            self._started = True
            await self._loop.start()

    async def stop(self) -> None:
        """Takes away what it has shown, of `gauges` all under `labels`."""
        if self._started:
            self._started = False
            await self._loop.stop()
            for gauge in self._gauges:
                gauge.take_away(**self._labels)
