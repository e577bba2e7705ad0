"""Notices what workers, which are other processes, write about jobs that somebody watches: one small query for all watchers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from libs.db import Database
from libs.errors import AppError
from services.training import repository

LOOK_SECONDS = 0.08


class Pulse:
    """A component. Costs nothing while nobody watches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._seen: dict[str, object] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.stopped = False

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="training-pulse")

    async def stop(self) -> None:
        """Lets every watcher go, and a query end that is under way: the database is about to close."""
        self.stopped = True
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()
        self._wanted.set()
        if self._task:
            await self._task

    @contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when there may be news of the job."""
        changed = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(changed)
        self._wanted.set()
        try:
            yield changed
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]
                self._seen.pop(job_id, None)

    async def _run(self) -> None:
        while not self.stopped:
            if self._watchers:
                await self._look()
                await asyncio.sleep(LOOK_SECONDS)
            else:
                self._wanted.clear()
                await self._wanted.wait()

    async def _look(self) -> None:
        try:
            async with self._database.read() as session:
                pulses = await repository.pulses_of_all_workspaces(session, list(self._watchers))
        except AppError:
            return  # The database is away: the next look tells.
        for job_id, pulse in pulses.items():
            if self._seen.get(job_id) != pulse and job_id in self._watchers:
                self._seen[job_id] = pulse
                for changed in self._watchers[job_id]:
                    changed.set()
