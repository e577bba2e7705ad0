"""Tells who waits for an endpoint that something about it has changed, inside this process."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Events by workspace and endpoint. A hint: what has changed is in the database."""

    def __init__(self) -> None:
        self._watchers: dict[tuple[str, str], set[asyncio.Event]] = {}

    def notify(self, workspace: str, endpoint: str) -> None:
        """Sets the event of everybody who watches it."""
        for changed in self._watchers.get((workspace, endpoint), ()):
            changed.set()

    @contextmanager
    def watching(self, workspace: str, endpoint: str) -> Iterator[asyncio.Event]:
        """An event that is set when there may be news."""
        key, changed = (workspace, endpoint), asyncio.Event()
        self._watchers.setdefault(key, set()).add(changed)
        try:
            yield changed
        finally:
            self._watchers[key].discard(changed)
            if not self._watchers[key]:
                del self._watchers[key]
