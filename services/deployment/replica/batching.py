"""Requests that arrive within one turn of the event loop are answered by one call of the model. No timer, no queue between processes.

What waits is bounded, may be taken back, and is dropped once nobody waits for its answer any more.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import AppError, Transient
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.raw import Raw, concatenate
from libs.modelkit.runtime import Runtime

MAX_WAITING_ROWS = 20_000
# What would wait longer is refused at once: whoever asks is better off with another replica, or later. One batch may always wait.
MAX_WAITING_SECONDS = 2.0
MAX_WAITING_BYTES = 256 << 20
# What takes longer goes to a thread, so that health checks and refusals are still answered.
_INLINE_SECONDS = 0.002
# Warm-up tries batches of 1, 2, 4 … rows until one takes so long: a batch is never larger than the last of them.
_LONGEST_SECONDS = 0.010
_LARGEST_BATCH = 1024
# What an earlier call says of the model's speed counts so much less with each call.
_MEMORY = 0.8
# How often rows whose time is over are looked for while the model is busy in its thread.
_SWEEP_SECONDS = 0.01

Outcome = NDArray[Any] | Exception


@dataclass(eq=False, slots=True)
class Waiting:
    """Rows in the queue. `done` is told their answers, or an error; `deadline` and `since` are in the loop's time."""

    raw: Raw
    rows: int
    bytes: int
    done: Callable[[Outcome], None]
    deadline: float
    since: float


@dataclass(frozen=True)
class Pace:
    """How fast the model is: rows that a call answers inline, rows that a call takes at most, and seconds a row takes in such a call."""

    inline_rows: int
    batch_rows: int
    row_seconds: float


@dataclass
class Sum:
    """How often, and for how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.seconds += seconds


@dataclass
class Statistics:
    """Since the process began. `rows` answered, in `calls` of the model; `sizes`: calls by their number of rows, to powers of two."""

    rows: int = 0
    calls: int = 0
    last: float = 0.0
    success: Sum = field(default_factory=Sum)
    failure: Sum = field(default_factory=Sum)
    queue: Sum = field(default_factory=Sum)
    compute: Sum = field(default_factory=Sum)
    sizes: dict[int, Sum] = field(default_factory=dict)


# Of code that its owner wrote nothing is known: it is never asked from the loop, nor for more rows at once than it may fail together.
CODE_PACE = Pace(0, 64, 0.001)


def warm_up(runtime: Runtime) -> Pace:
    """Runs each size of a batch, so that no request is the first of its kind, and takes the time of it."""
    inline, size, seconds = 0, 1, 0.0
    while True:
        blank = runtime.blank(size)
        runtime.answer(blank)
        begun = time.perf_counter()
        runtime.answer(blank)
        seconds = time.perf_counter() - begun
        if seconds <= _INLINE_SECONDS:
            inline = size
        if seconds > _LONGEST_SECONDS or size >= _LARGEST_BATCH:
            return Pace(inline, size, seconds / size)
        size *= 2


class Batcher:
    """Call it from the event loop's thread only."""

    def __init__(self, runtime: Runtime | CodeRuntime, pace: Pace | None = None, max_rows: int = MAX_WAITING_ROWS) -> None:
        self.statistics = Statistics()
        self._runtime = runtime
        self._pace = pace or (CODE_PACE if isinstance(runtime, CodeRuntime) else warm_up(runtime))
        self._max_rows = max_rows
        # Rows of the last calls and the seconds these took, large calls counting most: how fast the model is when much waits.
        self._called, self._spent = float(self._pace.batch_rows), self._pace.batch_rows * self._pace.row_seconds
        self._waiting: dict[Waiting, None] = {}
        self._rows = 0
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1, "model")
        self._busy = False
        self._scheduled = False

    def require_room(self, rows: int = 1) -> None:
        """Raises `rate_limited` where so many rows more would wait too long. What is alone is always let in."""
        row_seconds = self._spent / self._called
        most = min(self._max_rows, max(self._pace.batch_rows, MAX_WAITING_SECONDS / row_seconds))
        if self._waiting and (self._rows + rows > most or self._bytes > MAX_WAITING_BYTES):
            seconds = max(1, math.ceil(self._rows * row_seconds))
            raise Transient(
                f"{self._rows} rows of {self._bytes >> 20} MiB wait already, as many as may; try again in {seconds} s",
                code="rate_limited",
                meta={"retry_after": seconds},
            )

    def submit(self, raw: Raw, done: Callable[[Outcome], None], deadline: float = math.inf, size: int = 0) -> Waiting:
        """Queues rows for the next call of the model; `done` is called from the loop, later. Raises `rate_limited`.

        size: of the request that they came in, since texts are larger than arrays say.
        """
        rows = raw.rows
        self.require_room(rows)
        loop = asyncio.get_running_loop()
        waiting = Waiting(raw, rows, max(size, raw.bytes), done, deadline, loop.time())
        self._waiting[waiting] = None
        self._rows += rows
        self._bytes += waiting.bytes
        if not self._scheduled and not self._busy:
            self._scheduled = True
            loop.call_soon(self._flush)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """Takes rows back that nobody wants answered any more; `done` is not called where they still waited."""
        if waiting in self._waiting:
            self._leave(waiting)

    def _leave(self, waiting: Waiting) -> None:
        del self._waiting[waiting]
        self._rows -= waiting.rows
        self._bytes -= waiting.bytes

    def _flush(self) -> None:
        self._scheduled = False
        batch = self._take()
        if not batch:
            return
        rows = sum(waiting.rows for waiting in batch)
        if rows <= self._pace.inline_rows:
            self._settle(batch, *self._compute(batch))
            self._go_on()
            return
        self._busy = True
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, self._compute, batch).add_done_callback(lambda job: self._finish(batch, *job.result()))
        loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _finish(self, batch: list[Waiting], outcomes: list[Outcome], seconds: float) -> None:
        self._busy = False
        self._settle(batch, outcomes, seconds)
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _take(self) -> list[Waiting]:
        """What waits, up to what one call takes, but at least one request."""
        self._drop_late()
        batch: list[Waiting] = []
        rows, limit = 0, 0
        for waiting in self._waiting:
            rows += waiting.rows
            if not batch:
                limit = self._pace.inline_rows if rows <= self._pace.inline_rows else self._pace.batch_rows
            elif rows > limit:
                break
            batch.append(waiting)
        for waiting in batch:
            self._leave(waiting)
        return batch

    def _drop_late(self) -> None:
        now = asyncio.get_running_loop().time()
        late = [waiting for waiting in self._waiting if waiting.deadline <= now]
        for waiting in late:
            self._leave(waiting)
            self.statistics.failure.add(1, now - waiting.since)
            waiting.done(Transient("the caller's time was over before the model got to it", code="deadline_exceeded"))

    def _sweep(self) -> None:
        """What waits for a busy model hears at once that its time is over."""
        if self._busy:
            self._drop_late()
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _compute(self, batch: list[Waiting]) -> tuple[list[Outcome], float]:
        """Answers of each request, or what went wrong, and the seconds it took."""
        begun = time.perf_counter()
        together = self._ask(batch)
        if not isinstance(together, Exception):
            ends = accumulate(waiting.rows for waiting in batch)
            outcomes: list[Outcome] = [together[end - waiting.rows : end] for waiting, end in zip(batch, ends, strict=True)]
        elif len(batch) > 1 and isinstance(together, AppError) and together.code == "upstream_failed":
            # A record of one request made somebody's code fail: the others are not to hear of that.
            outcomes = [self._ask([waiting]) for waiting in batch]
        else:
            outcomes = [together] * len(batch)
        return outcomes, time.perf_counter() - begun

    def _ask(self, batch: list[Waiting]) -> Outcome:
        try:
            raw, most = concatenate([waiting.raw for waiting in batch]), self._pace.batch_rows
            if raw.rows <= most:
                return self._runtime.answer(raw)
            return np.concatenate([self._runtime.answer(raw.part(at, at + most)) for at in range(0, raw.rows, most)])
        except Exception as error:  # goes to each of the requests; the next batch is not to blame
            return error

    def _settle(self, batch: list[Waiting], outcomes: list[Outcome], seconds: float) -> None:
        self._called = _MEMORY * self._called + sum(waiting.rows for waiting in batch)
        self._spent = _MEMORY * self._spent + seconds
        failed: list[Waiting] = []
        answered: list[Waiting] = []
        for waiting, outcome in zip(batch, outcomes, strict=True):
            (failed if isinstance(outcome, Exception) else answered).append(waiting)
        if failed:
            self._count(failed, True, seconds)
        if answered:
            self._count(answered, False, seconds)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.done(outcome)

    def _count(self, batch: list[Waiting], failed: bool, seconds: float) -> None:
        counts, now = self.statistics, asyncio.get_running_loop().time()
        spent = sum(now - waiting.since for waiting in batch)
        if failed:
            counts.failure.add(len(batch), spent)
            return
        rows = sum(waiting.rows for waiting in batch)
        counts.rows += rows
        counts.calls += 1
        counts.last = time.time()
        counts.success.add(len(batch), spent)
        counts.queue.add(len(batch), max(0.0, spent - seconds * len(batch)))
        counts.compute.add(len(batch), seconds * len(batch))
        counts.sizes.setdefault(1 << (rows - 1).bit_length(), Sum()).add(1, seconds)
