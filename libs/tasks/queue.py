"""One service's task queue: registering coroutines as Celery tasks, and sending messages for them without waiting."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import propagate, trace

from libs.telemetry import counter

if TYPE_CHECKING:
    from celery import Celery

log = structlog.get_logger()
_tasks = counter("lepton_tasks_total", "Tasks that a worker ran: done, failed or cancelled.", ("task", "outcome"))

TaskFunction = Callable[..., Coroutine[Any, Any, None]]


class TaskQueue:
    """A component. `url` is a Celery broker URL: "redis://…", "redis+socket:///path"; "memory://" drops messages, for tests."""

    def __init__(self, service: str, url: str) -> None:
        self.service = service
        self.queue = f"lepton.{service}"
        self.url = url
        # Set by the worker.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._in_hand: set[asyncio.Task[Any]] = set()
        self._cancelled = False
        self._functions: dict[str, Callable[..., None]] = {}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix=f"{service}-tasks")
        self._tracer = trace.get_tracer(service)

    @cached_property
    def app(self) -> "Celery":
        """For sending. Celery takes a quarter of a second to import: it is loaded by the first message, not by the start."""
        from libs.tasks.broker import celery_app

        return celery_app(self.service, self.url, self.queue)

    def register(self, name: str, function: TaskFunction) -> None:
        """Makes `function(**kwargs)` what a worker of this process runs for messages `name`, on the process's event loop.

        It returns when the work has ended; only then is the message acknowledged. What it raises is logged: the row's reconciler
        sends the next message.
        """

        def run(task: Any, **kwargs: Any) -> None:
            if self.loop is None:
                raise RuntimeError(f"task {name} came before the worker started")
            work = self._traced(name, function, dict(task.request.headers or {}), kwargs)
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
            try:
                future.result()
            except CancelledError:
                log.info("task_cancelled", task=name)

        self._functions[self._full_name(name)] = run

    def install(self, app: "Celery") -> None:
        """Makes the registered tasks known to the app that a worker runs."""
        for name, function in self._functions.items():
            app.task(function, bind=True, name=name, shared=False)

    def enqueue(self, name: str, /, **kwargs: str | int | float) -> None:
        """Sends a message in the current trace, soon and in the background. Never raises: a message is only a hint."""
        headers: dict[str, str] = {}
        propagate.inject(headers)
        try:
            self._sender.submit(self._send, name, kwargs, headers)
        except RuntimeError:
            log.warning("task_enqueue_failed", task=name, reason="stopping")

    def cancel_all(self) -> None:
        """Cancels the coroutines in hand, and those that still come; their threads return. Only from the worker's event loop."""
        self._cancelled = True
        for task in list(self._in_hand):
            task.cancel()

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        """Sends what is left, then closes."""
        await asyncio.to_thread(self._sender.shutdown)
        if "app" in self.__dict__:
            await asyncio.to_thread(self.app.close)

    def _full_name(self, name: str) -> str:
        return f"lepton.{self.service}.{name}"

    def _send(self, name: str, kwargs: dict[str, Any], headers: dict[str, str]) -> None:
        try:
            self.app.send_task(self._full_name(name), kwargs=kwargs, headers=headers, queue=self.queue, retry=False)
        except Exception as error:
            log.warning("task_enqueue_failed", task=name, error=repr(error))

    async def _traced(self, name: str, function: Callable[..., Awaitable[None]], headers: dict[str, str], kwargs: dict[str, Any]) -> None:
        task = asyncio.current_task()
        if self._cancelled or task is None:
            raise asyncio.CancelledError
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)
        parent = propagate.extract(headers)
        with self._tracer.start_as_current_span(f"task {name}", context=parent, kind=trace.SpanKind.CONSUMER):
            outcome = "cancelled"
            try:
                await function(**kwargs)
                outcome = "done"
            except Exception:
                outcome = "failed"
                log.exception("task_failed", task=name, **kwargs)
            finally:
                _tasks.add(1, task=f"{self.service}.{name}", outcome=outcome)
