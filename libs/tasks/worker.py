"""Runs the tasks of one or more queues inside this process: Celery takes the messages, the process's event loop does the work."""

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from libs.tasks.queue import TaskQueue

if TYPE_CHECKING:
    from celery.worker import WorkController


class Worker:
    """A component. At most `concurrency` messages are worked on at once; each costs a waiting thread. All queues have one broker."""

    def __init__(self, queues: Sequence[TaskQueue], *, concurrency: int = 32) -> None:
        self._queues, self._concurrency = queues, concurrency
        self._controller: WorkController | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        from libs.tasks.broker import Controller, celery_app

        app = celery_app("worker", self._queues[0].url, self._queues[0].queue)
        # Celery's pool threads look tasks up in the process's default app.
        app.set_default()
        for queue in self._queues:
            queue.loop = asyncio.get_running_loop()
            queue.install(app)
        self._controller = Controller(
            app=app,
            pool_cls="threads",
            concurrency=self._concurrency,
            queues=[queue.queue for queue in self._queues],
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            task_events=False,
        )
        self._thread = threading.Thread(target=self._controller.start, name="task-worker", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Takes nothing new and cancels what is in hand: its row's lease runs out, and another takes it."""
        if self._controller is None or self._thread is None:
            return
        self._controller.stop(in_sighandler=True)
        for queue in self._queues:
            queue.cancel_all()
        # The controller looks up from its broker every 2 s; its thread is a daemon, and what it could still take is only a hint.
        await asyncio.to_thread(self._thread.join, 0.2)
