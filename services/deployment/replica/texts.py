"""Texts come piece by piece from a thread of their own, one at a time; the others wait in a bounded queue.

Who makes the pieces waits for who reads them. Knows neither HTTP nor a model.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from libs.errors import Transient

MAX_WAITING = 32
# So many pieces may be made that nobody has read.
_AHEAD = 64


@dataclass(eq=False, slots=True)
class Job:
    """`make` runs in the thread; `take` is told each piece and `done` the end, both from the loop and never once it was withdrawn.

    `deadline` is in the loop's time. Whoever has read a piece calls `read`.
    """

    make: Callable[[], Iterator[Any]]
    take: Callable[[Any], None]
    done: Callable[[Exception | None], None]
    deadline: float = math.inf
    over: bool = False
    timer: asyncio.TimerHandle | None = None
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AHEAD))

    def read(self) -> None:
        self.room.release()


class Texts:
    """Call it from the event loop's thread only."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._jobs: set[Job] = set()
        self._queue: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def require_room(self) -> None:
        """Raises `rate_limited` where too many wait."""
        if len(self._jobs) > self._max_waiting:
            words = f"{len(self._jobs) - 1} texts wait already, as many as may; try again in a moment"
            raise Transient(words, code="rate_limited", meta={"retry_after": 1})

    def submit(self, job: Job) -> Job:
        """Raises `rate_limited`."""
        self.require_room()
        loop = asyncio.get_running_loop()
        self._jobs.add(job)
        if job.deadline < math.inf:
            job.timer = loop.call_at(job.deadline, self._late, job)
        self._queue.put(job)
        if self._thread is None:
            # Code that never returns must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, args=(loop,), name="texts", daemon=True)
            self._thread.start()
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody wants it any more: the next piece is its last."""
        job.over = True
        if job.timer is not None:
            job.timer.cancel()
        # Its thread may wait for a reader.
        job.read()

    def _late(self, job: Job) -> None:
        self.withdraw(job)
        job.done(Transient("the caller's time was over before the text was", code="deadline_exceeded"))

    def _take(self, job: Job, piece: Any) -> None:
        if not job.over:
            job.take(piece)

    def _leave(self, job: Job, error: Exception | None) -> None:
        self._jobs.discard(job)
        if not job.over:
            self.withdraw(job)
            job.done(error)

    # In the thread

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            job = self._queue.get()
            error = self._run(job, loop)
            try:
                loop.call_soon_threadsafe(self._leave, job, error)
            except RuntimeError:
                return  # the loop is closed: the process ends

    def _run(self, job: Job, loop: asyncio.AbstractEventLoop) -> Exception | None:
        pieces: Iterator[Any] | None = None
        try:
            if job.over:
                return None
            pieces = job.make()
            for piece in pieces:
                job.room.acquire()
                if job.over:
                    break
                loop.call_soon_threadsafe(self._take, job, piece)
        except Exception as error:  # whatever a model's code raises goes to who asked; the next text is not to blame
            return error
        finally:
            if (close := getattr(pieces, "close", None)) is not None:
                close()
        return None


class Stream:
    """Parts of an answer that come by and by, for one reader that takes them when it can: `on_more` tells it to look."""

    def __init__(self, on_taken: Callable[[], None]) -> None:
        self.over = False
        self.trailers = b""
        self.on_more: Callable[[], None] = lambda: None
        self._on_taken = on_taken
        self._parts: deque[bytes] = deque()

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self.on_more()

    def end(self, part: bytes, trailers: bytes = b"") -> None:
        """`part` is the last one; `trailers` are header lines behind it."""
        self._parts.append(part)
        self.over, self.trailers = True, trailers
        self.on_more()

    def take(self) -> bytes | None:
        """The next part; None where there is none now."""
        if not self._parts:
            return None
        self._on_taken()
        return self._parts.popleft()
