"""A file that a health check outside looks at: it is there and fresh while the process is ready and its event loop turns.

A container's check then costs a `find`, not an interpreter: `test -n "$(find FILE -mmin -0.25)"`.
"""

from pathlib import Path

from libs.lifecycle import Component, Loop

INTERVAL_SECONDS = 2.0


class Alive:
    """A component around another: touches `path` every two seconds from its start to its stop. An empty path: no file."""

    def __init__(self, component: Component, path: str) -> None:
        self._component = component
        self._path = Path(path) if path else None
        self._loop = Loop("alive", self._touch, interval=INTERVAL_SECONDS)

    async def start(self) -> None:
        if self._path:
            self._path.unlink(missing_ok=True)
        await self._component.start()
        if self._path:
            await self._loop.start()

    async def stop(self) -> None:
        """First nobody sends more; then what is in hand ends."""
        if self._path:
            await self._loop.stop()
            self._path.unlink(missing_ok=True)
        await self._component.stop()

    async def _touch(self) -> None:
        if self._path:
            self._path.touch()
