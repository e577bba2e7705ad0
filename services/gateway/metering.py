"""Rows are recorded before their answer is sent, many requests in one call.

Knows how to gather and to try again; not what a row costs.
"""

import asyncio
import contextvars
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

from libs.errors import Transient
from libs.rpc import Call, acting

K = TypeVar("K", bound=Hashable)
# One call's worth; the contract's limit on records.
MAX_RECORDS = 1000
_log = structlog.get_logger(__name__)


class _Batch(Generic[K]):
    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        # key → requests, rows
        self.uses: dict[K, tuple[int, int]] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody may be left to hear of a failure.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        # The first request's trace shows the call that it shares.
        self.context = contextvars.copy_context()


class GroupCommit(Generic[K]):
    """A lifecycle component. `send(batch_id, uses)` records; the same batch_id again must record nothing.

    While one call is under way the next batch gathers, so a single request waits for nobody and many share a call.
    """

    def __init__(self, send: Callable[[str, dict[K, tuple[int, int]]], Awaitable[object]], *, deadline_seconds: float = 10.0) -> None:
        self._send = send
        self._deadline_seconds = deadline_seconds
        self._waiting: list[_Batch[K]] = []
        self._task: asyncio.Task[None] | None = None

    async def record(self, key: K, rows: int) -> None:
        """Returns once the rows are recorded; raises Transient when that could not be done in time."""
        if not self._waiting or len(self._waiting[-1].uses) >= MAX_RECORDS:
            self._waiting.append(_Batch())
        batch = self._waiting[-1]
        requests, before = batch.uses.get(key, (0, 0))
        batch.uses[key] = (requests + 1, before + rows)
        if self._task is None:
            self._deliver_next()
        await asyncio.shield(batch.done)

    async def start(self) -> None:
        """Nothing to prepare."""

    async def stop(self) -> None:
        """Delivers what has been gathered."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def _deliver_next(self) -> None:
        batch = self._waiting.pop(0)
        self._task = asyncio.get_running_loop().create_task(self._deliver(batch), context=batch.context)
        self._task.add_done_callback(self._delivered)

    def _delivered(self, _task: asyncio.Task[None]) -> None:
        self._task = None
        if self._waiting:
            self._deliver_next()

    async def _deliver(self, batch: _Batch[K]) -> None:
        try:
            with acting(Call()):
                await self._until_sent(batch)
            batch.done.set_result(None)
        except Exception as error:
            _log.error("use_not_recorded", batch_id=batch.id, records=len(batch.uses), exc_info=error)
            batch.done.set_exception(Transient("the rows could not be recorded, so their answer is not given; try again"))

    async def _until_sent(self, batch: _Batch[K]) -> None:
        give_up = time.monotonic() + self._deadline_seconds
        pause = 0.02
        while True:
            try:
                await self._send(batch.id, batch.uses)
                return
            except Transient:
                if time.monotonic() + pause > give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
