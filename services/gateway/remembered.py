"""Answers of other services, remembered: while they are used they are asked for again in the background, so that nobody waits for it.

Knows nothing of what is asked.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from libs.errors import AppError, Transient

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# What was used within so long is not waited for again.
_LIVELY_SECONDS = 3.0
# A slow answer is waited for so long where an old one is known.
_PATIENCE_SECONDS = 0.5


@dataclass(slots=True)
class _Known(Generic[V]):
    value: V
    asked: float
    used: float


class Remembered(Generic[K, V]):
    """At most `size` answers, the last used ones. One is asked for again after `fresh_seconds`; while the other side cannot be reached
    the old one holds for `stale_seconds`.
    """

    def __init__(
        self,
        ask: Callable[[K], Coroutine[Any, Any, V]],
        *,
        fresh_seconds: float,
        stale_seconds: float,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._fresh_seconds, self._stale_seconds, self._size, self._clock = ask, fresh_seconds, stale_seconds, size, clock
        self._known: OrderedDict[K, _Known[V]] = OrderedDict()
        self._asking: dict[K, asyncio.Task[V]] = {}

    def now(self, key: K) -> V | None:
        """What can be said without waiting."""
        known = self._known.get(key)
        if known is None:
            return None
        now = self._clock()
        if now - known.asked >= self._fresh_seconds:
            if now - known.used >= _LIVELY_SECONDS or now - known.asked >= self._stale_seconds:
                return None
            self._begin(key)
        known.used = now
        return known.value

    async def get(self, key: K, *, current: bool = False) -> V:
        """Raises what asking raises, but for Transient where an old answer still holds. `current`: not what was true a moment ago."""
        if not current and (value := self.now(key)) is not None:
            return value
        asking = self._begin(key)
        known = self._known.get(key)
        if known is None or self._clock() - known.asked >= self._stale_seconds:
            return await asyncio.shield(asking)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(asking)
        except (Transient, TimeoutError):
            known.used = self._clock()
            return known.value

    def knows(self, key: K) -> bool:
        """Whether there is an answer, old or new."""
        return key in self._known

    def clear(self) -> None:
        """Forgets all."""
        self._known.clear()
        self._asking.clear()

    def stop(self) -> None:
        """Ends what is under way."""
        for task in list(self._asking.values()):
            task.cancel()

    def _begin(self, key: K) -> asyncio.Task[V]:
        """One question at a time for each key, however many ask."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda done: self._done(key, done))
        return task

    def _done(self, key: K, task: asyncio.Task[V]) -> None:
        if self._asking.get(key) is not task:
            # Cleared meanwhile: what it says may be wrong by now.
            if not task.cancelled():
                task.exception()
            return
        del self._asking[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            now = self._clock()
            self._known[key] = _Known(task.result(), now, now)
            self._known.move_to_end(key)
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        elif isinstance(error, AppError) and not isinstance(error, Transient):
            self._known.pop(key, None)
