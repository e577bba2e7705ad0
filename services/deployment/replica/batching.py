"""Requests that arrive within one turn of the event loop are answered by one call of the model. No timer, no queue between processes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from libs.modelkit.raw import Raw, concatenate
from libs.modelkit.runtime import Runtime

# A batch whose work may take longer than about 2 ms goes to a thread, so that health checks are still answered.
_BIG_CELLS = 50_000
_MAX_ROWS = 4096

Waiting = tuple[Raw, "asyncio.Future[NDArray[np.float64]]"]


class Batcher:
    """Call `answer` from the event loop's thread only."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiting: list[Waiting] = []
        self._thread = ThreadPoolExecutor(1, "model")
        self._busy = False
        self._scheduled = False
        self._cells_per_row = _cost(runtime)

    async def answer(self, raw: Raw) -> NDArray[np.float64]:
        """Numbers [N] or probabilities [N, K] for these rows."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NDArray[np.float64]] = loop.create_future()
        self._waiting.append((raw, future))
        if not self._scheduled and not self._busy:
            self._scheduled = True
            loop.call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        self._scheduled = False
        batch = self._take()
        raw = sum(part.rows for part, _ in batch)
        if raw * self._cells_per_row <= _BIG_CELLS:
            _settle(batch, self._compute(batch))
            self._go_on()
            return
        self._busy = True
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        job.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _finish(self, batch: list[Waiting], outcome: "Outcome") -> None:
        self._busy = False
        _settle(batch, outcome)
        self._go_on()

    def _go_on(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _take(self) -> list[Waiting]:
        """What waits, up to a bound of rows, but at least one request."""
        sums = list(accumulate(part.rows for part, _ in self._waiting))
        count = max(1, next((i for i, rows in enumerate(sums) if rows > _MAX_ROWS), len(sums)))
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _compute(self, batch: list[Waiting]) -> "Outcome":
        try:
            return self._runtime.answer(concatenate([raw for raw, _ in batch]))
        except Exception as error:  # goes to each of the requests; the next batch is not to blame
            return error


Outcome = NDArray[np.float64] | Exception


def _settle(batch: list[Waiting], outcome: Outcome) -> None:
    start = 0
    for raw, future in batch:
        stop = start + raw.rows
        if not future.done():  # the client may have gone
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[start:stop])
        start = stop


def _cost(runtime: Runtime) -> int:
    """Roughly what one row costs, in cells of a table's row through a small network."""
    cells = int(np.prod(runtime.package.preprocessing.shape))
    return cells if runtime.package.architecture in ("linear", "mlp") else cells * 50
