"""Runs the tasks of one or more queues inside this process: Celery takes the messages, the process's event loop does the work."""

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from libs.tasks.queue import TaskQueue

if TYPE_CHECKING:
    from libs.tasks.broker import Controller

log = structlog.get_logger()

# Celery's worker comes back by itself from a broker's absence; from what it does not expect, after so long.
AGAIN_SECONDS = 2.0


class Worker:
    """A component. At most `concurrency` messages are worked on at once; each costs a waiting thread. All queues have one broker."""

    def __init__(self, queues: Sequence[TaskQueue], *, concurrency: int = 32) -> None:
        self._queues, self._concurrency = queues, concurrency
        self._controller: Controller | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    async def start(self) -> None:
        for queue in self._queues:
            queue.loop = asyncio.get_running_loop()
        self._controller = await asyncio.to_thread(self._make)
        self._thread = threading.Thread(target=self._work, name="task-worker", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Takes nothing new and cancels what is in hand: its row's lease runs out, and another takes it."""
        self._stopping.set()
        if self._controller is None or self._thread is None:
            return
        self._controller.close()
        for queue in self._queues:
            queue.cancel_all()
        # The controller looks up from its broker every 2 s; its thread is a daemon, and what it could still take is only a hint.
        await asyncio.to_thread(self._thread.join, 0.2)

    def _work(self) -> None:
        while self._controller is not None:
            self._controller.start()
            if self._stopping.is_set():
                self._controller.stop()
                return
            if self._stopping.wait(AGAIN_SECONDS):
                return
            log.warning("task_worker_starts_again")
            self._controller = self._make()

    def _make(self) -> "Controller":
        from libs.tasks.broker import Controller, celery_app

        first = self._queues[0]
        app = celery_app("worker", first.url, first.queue, visibility_seconds=first.visibility_seconds)
        # Celery's pool threads look tasks up in the process's default app.
        app.set_default()
        for queue in self._queues:
            queue.install(app)
        return Controller(
            app=app,
            pool_cls="threads",
            concurrency=self._concurrency,
            queues=[name for queue in self._queues for name in queue.queues],
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            task_events=False,
        )
