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
        self._waiting: deque[Job] = deque()
        self._made: Job | None = None
        self._queue: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def require_room(self) -> None:
        """Raises `rate_limited` where too many wait."""
        if len(self._waiting) >= self._max_waiting:
            words = f"{len(self._waiting)} texts wait already, as many as may; try again in a moment"
            raise Transient(words, code="rate_limited", meta={"retry_after": 1})

    def submit(self, job: Job) -> Job:
        """Raises `rate_limited`."""
        self.require_room()
        loop = asyncio.get_running_loop()
        if job.deadline < math.inf:
            job.timer = loop.call_at(job.deadline, self._late, job)
        self._waiting.append(job)
        if self._thread is None:
            # Code that never returns must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, args=(loop,), name="texts", daemon=True)
            self._thread.start()
        self._next()
        return job

    def withdraw(self, job: Job) -> None:
        """Nobody wants it any more: it gives up its place, or the next piece is its last."""
        job.over = True
        if job.timer is not None:
            job.timer.cancel()
        if job in self._waiting:
            self._waiting.remove(job)
        # Its thread may wait for a reader.
        job.read()

    def _next(self) -> None:
        if self._made is None and self._waiting:
            self._made = self._waiting.popleft()
            self._queue.put(self._made)

    def _late(self, job: Job) -> None:
        self.withdraw(job)
        job.done(Transient("the caller's time was over before the text was", code="deadline_exceeded"))

    def _take(self, job: Job, piece: Any) -> None:
        if not job.over:
            job.take(piece)

    def _leave(self, job: Job, error: Exception | None) -> None:
        self._made = None
        if not job.over:
            self.withdraw(job)
            job.done(error)
        self._next()

    # In the thread

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._work_on(self._queue.get(), loop):
            pass

    def _work_on(self, job: Job, loop: asyncio.AbstractEventLoop) -> bool:
        error = self._run(job, loop)
        try:
            loop.call_soon_threadsafe(self._leave, job, error)
        except RuntimeError:
            return False  # the loop is closed: the process ends
        return True

    def _run(self, job: Job, loop: asyncio.AbstractEventLoop) -> Exception | None:
        try:
            for piece in job.make():
                job.room.acquire()
                if job.over:
                    break
                loop.call_soon_threadsafe(self._take, job, piece)
        except Exception as error:  # whatever a model's code raises goes to who asked; the next text is not to blame
            return error
        return None


class Stream:
    """Parts of an answer that come by and by, for one reader that takes them when it can: `on_more` tells it to look."""

    def __init__(self, on_taken: Callable[[], None]) -> None:
        self.over = False
        self.on_more: Callable[[], None] = lambda: None
        self._on_taken = on_taken
        self._parts: deque[bytes] = deque()

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self.on_more()

    def end(self, part: bytes) -> None:
        """`part` is the last one, if any."""
        self.over = True
        if part:
            self._parts.append(part)
        self.on_more()

    @property
    def left(self) -> bool:
        """Whether there is more, or will be."""
        return bool(self._parts) or not self.over

    def take(self) -> bytes | None:
        """The next part; None where there is none now."""
        if not self._parts:
            return None
        self._on_taken()
        return self._parts.popleft()
