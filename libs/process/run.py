"""A component as the only thing that a process does."""

import asyncio
import gc
from collections.abc import Callable
from typing import TypeVar

from libs import telemetry
from libs.lifecycle import Component, Lifecycle
from libs.process.alive import Alive
from libs.process.settings import ProcessSettings

# For all parts of a process to end, one after another, once callers had their time to find another.
GRACE_SECONDS = 25.0
# Objects that come into being between two looks for garbage in cycles. At Python's 700 the gateway spends a tenth of its time looking.
_YOUNG_OBJECTS = 50_000

S = TypeVar("S", bound=ProcessSettings)


def run(
    name: str,
    settings: S,
    build: Callable[[S], Component],
    *,
    grace_seconds: float = GRACE_SECONDS,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Runs what `build` makes of the settings until SIGTERM or SIGINT; traces, logs and metrics bear the name."""

    async def main() -> None:
        component = Alive(build(settings), settings.alive_file)
        await Lifecycle([component], grace_seconds=settings.drain_seconds + grace_seconds).run()

    telemetry.setup(
        name,
        url=settings.telemetry_url,
        level=settings.log_level,
        metrics_listen=settings.metrics_listen,
        sample=settings.telemetry_sample,
    )
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    gc.set_threshold(_YOUNG_OBJECTS)
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    finally:
        telemetry.shutdown()
