"""A bounded queue and the thread that empties it into a sink: who puts something in never waits for what becomes of it."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from libs.telemetry.metrics import counter

log = structlog.get_logger()

FLUSH_SECONDS = 0.25
BATCH = 512
# The process's end waits so long for a sink that does not answer.
CLOSE_SECONDS = 3.0
# Of a sink that stays away one line a minute is enough.
WARNING_SECONDS = 60.0

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
_dropped = counter("lepton_telemetry_dropped_total", "Spans and log lines that were not kept or delivered.", ("signal",))


class Sink(Protocol[T_contra]):
    """Where it goes. Called from one thread at a time; what it raises is logged, and the batch is dropped."""

    def write(self, batch: Sequence[T_contra]) -> None: ...

    def close(self) -> None: ...


class Background(Generic[T]):
    """`put` costs microseconds. Beyond `limit` the oldest are dropped; `dropped` counts them and what the sink did not take."""

    def __init__(self, name: str, limit: int) -> None:
        self.dropped = 0
        self._name = name
        self._limit = limit
        self._queue: deque[T] = deque(maxlen=limit)
        self._sink: Sink[T] | None = None
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._flushing = threading.Lock()
        self._warned = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is a sink."""
        return self._sink is not None

    def open(self, sink: Sink[T] | None) -> None:
        """Empties itself into `sink` from now on; None: nothing is kept."""
        self.close()
        self._sink, self._warned = sink, 0.0
        if sink:
            # Of this thread alone: one that hangs in an earlier sink must still find its own set.
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name=f"telemetry-{self._name}", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Begins to close: the thread writes what is queued, and ends."""
        self._stop.set()
        self._wake.set()

    def close(self) -> None:
        """Writes what is queued and closes the sink."""
        self.end()
        if self._thread:
            self._thread.join(CLOSE_SECONDS)
            self._thread = None
        if self._sink:
            self._sink.close()
            self._sink = None
        self._queue.clear()

    def put(self, item: T) -> None:
        """Queues it, if there is a sink."""
        if self._sink is None:
            return
        if len(self._queue) == self._limit:
            self._count(1)
        self._queue.append(item)
        if len(self._queue) >= BATCH and not self._wake.is_set():
            self._wake.set()

    def flush(self) -> bool:
        """Writes what is queued, now; whether the sink took it."""
        with self._flushing:
            while self._queue and (sink := self._sink):
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                try:
                    sink.write(batch)
                except Exception as error:
                    self._count(len(batch))
                    self._warn(error)
                    return False
        return True

    def _count(self, dropped: int) -> None:
        self.dropped += dropped
        _dropped.add(dropped, signal=self._name)

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if not self._warned or now - self._warned >= WARNING_SECONDS:
            self._warned = now
            log.warning(f"{self._name}_dropped", count=self.dropped, error=repr(error))

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self.flush()
