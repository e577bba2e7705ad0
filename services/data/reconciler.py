"""Brings every version on, whatever was interrupted: hints to workers, withdrawals that were not finished, objects that nothing names.

Knows no worker; runs in the service.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog

from libs.db import Database
from libs.errors import AppError
from libs.lifecycle import Loop
from libs.rpc import Client, acting_for
from libs.storage import ArtifactStore
from services.data import repository
from services.data.domain.states import State
from services.data.handlers import making, versions
from services.data.handlers.making import LATE_SECONDS
from services.data.handlers.versions import Key

log = structlog.get_logger()

HINTS = 100
# Between two hints of the same version: it may only be waiting for a free worker.
HINT_AGAIN_SECONDS = 5.0
RESERVING_SECONDS = 120.0
SWEEP_SECONDS = 3600.0
SWEEP_BATCH = 500


class Reconciler:
    """A component."""

    def __init__(self, database: Database, accounts: Client, hint: Callable[[Key], Any], *, interval: float) -> None:
        self._database, self._accounts, self._hint = database, accounts, hint
        self._hinted: dict[Key, float] = {}
        self._loop = Loop("data-reconciler", self.step, interval=interval)

    async def start(self) -> None:
        await self._loop.start()

    async def stop(self) -> None:
        await self._loop.stop()

    async def step(self) -> None:
        now = time.time()
        async with self._database.read() as session:
            waiting = await repository.claimable_of_all_workspaces(session, now, HINTS)
            abandoned = await repository.abandoned_of_all_workspaces(
                session, reserving_since=now - RESERVING_SECONDS, awaited_until=now - LATE_SECONDS
            )
        self._hinted = {key: at for key, at in self._hinted.items() if now - at < HINT_AGAIN_SECONDS}
        for key in (Key(*where) for where in waiting):
            if key not in self._hinted:
                self._hinted[key] = now
                self._hint(key)
        for version in abandoned:
            await self._settle(Key.of(version), State(version.state))

    async def _settle(self, key: Key, state: State) -> None:
        """Its caller went away."""
        try:
            with acting_for(key.workspace):
                if state is State.PROCESSING:
                    async with self._database.unit() as unit:
                        await versions.stop_waiting(unit, key)
                else:
                    await making.withdraw(self._accounts, self._database, key)
        except AppError as error:
            log.warning("settling_put_off", dataset=key.dataset, number=key.number, error=str(error))


class Sweep:
    """A component: removes objects that no row names: soon those that a row has ceased to name, later those that none ever named."""

    def __init__(self, database: Database, store: ArtifactStore, *, discard_seconds: float, orphan_seconds: float) -> None:
        self._database, self._store = database, store
        self._discard_seconds, self._orphan_seconds = discard_seconds, orphan_seconds
        self._loops = [
            Loop("data-discard", self.discard, interval=max(discard_seconds / 4, 0.05)),
            Loop("data-sweep", self.sweep, interval=min(SWEEP_SECONDS, orphan_seconds)),
        ]

    async def start(self) -> None:
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        for loop in self._loops:
            await loop.stop()

    async def discard(self) -> bool:
        """What rows have ceased to name. True where more is left."""
        async with self._database.read() as session:
            due = await repository.due_orphans_of_all_workspaces(session, time.time() - self._discard_seconds)
            unnamed = await repository.unnamed_of_all_workspaces(session, due)
        for digest in unnamed:
            await self._store.discard(digest, idle_seconds=self._discard_seconds)
        if due:
            # What was put again meanwhile is left to the sweep.
            async with self._database.unit() as unit:
                await repository.forget_orphans_of_all_workspaces(unit.session, due)
        return len(due) > 0

    async def sweep(self) -> None:
        """What nothing names, of everything that is in the store."""
        old = [digest async for digest, idle in self._store.list() if idle >= self._orphan_seconds]
        for begin in range(0, len(old), SWEEP_BATCH):
            async with self._database.read() as session:
                unnamed = await repository.unnamed_of_all_workspaces(session, old[begin : begin + SWEEP_BATCH])
            for digest in unnamed:
                await self._store.discard(digest, idle_seconds=self._orphan_seconds)
