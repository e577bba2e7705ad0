"""One service's task queue: registering coroutines as Celery tasks, and sending messages for them without waiting."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from opentelemetry import propagate, trace

from libs.telemetry import counter, inject

if TYPE_CHECKING:
    from celery import Celery

log = structlog.get_logger()
_tasks = counter("lepton_tasks_total", "Tasks that a worker ran: done, failed or cancelled.", ("task", "outcome"))

TaskFunction = Callable[..., Coroutine[Any, Any, None]]
Arguments = Mapping[str, str | int | float]

# For work that somebody waits for, and for other work. A waiting message of the first kind is taken before all of the second.
URGENT, NORMAL = 0, 3
# Messages that wait in this process to be sent, and in the broker to be taken: one more would make nothing start sooner.
MOST_UNSENT = 1000
MOST_WAITING = 10_000
# At a stop, for sending what is left.
STOP_SECONDS = 2.0
# A message that nobody acknowledged for so long comes again.
VISIBILITY_SECONDS = 3600.0


class TaskQueue:
    """A component. `url` is a Celery broker URL: "redis://:password@host:6379/0", "rediss://…", "redis+socket:///path"; "memory://" drops
    messages, for tests.

    A worker with a `part`, such as a node's name, also hears what is sent to that part alone.
    """

    def __init__(self, service: str, url: str, *, part: str = "", visibility_seconds: float = VISIBILITY_SECONDS) -> None:
        _require_url(url)
        self.service = service
        self.url = url
        self.visibility_seconds = visibility_seconds
        self.queue = self._queue_of("")
        self.queues = [self.queue, *([self._queue_of(part)] if part else [])]
        # Set by the worker.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._in_hand: set[asyncio.Task[Any]] = set()
        self._cancelled = False
        self._functions: dict[str, Callable[..., None]] = {}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix=f"{service}-tasks")
        self._room = threading.BoundedSemaphore(MOST_UNSENT)
        self._lost = 0
        self._tracer = trace.get_tracer(service)

    @cached_property
    def app(self) -> "Celery":
        """For sending. Celery takes a quarter of a second to import: it is loaded by the first message, not by the start."""
        from libs.tasks.broker import celery_app

        return celery_app(self.service, self.url, self.queue)

    def register(self, name: str, function: TaskFunction) -> None:
        """Makes `function(**arguments)` what a worker of this process runs for messages `name`, on the process's event loop.

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

    def enqueue(self, name: str, arguments: Arguments, *, priority: int = NORMAL, part: str = "") -> None:
        """Sends a message in the current trace, soon and in the background; only workers with this `part` hear it, if one is named.

        Never raises or waits: a message is only a hint, and where too many wait the newest are dropped.
        """
        if not self._room.acquire(blocking=False):
            self._lose(name, f"{MOST_UNSENT} wait to be sent")
            return
        try:
            self._sender.submit(self._send, name, dict(arguments), inject(), priority, self._queue_of(part))
        except RuntimeError:
            self._room.release()
            self._lose(name, "stopping")

    def cancel_all(self) -> None:
        """Cancels the coroutines in hand, and those that still come; their threads return. Only from the worker's event loop."""
        self._cancelled = True
        for task in list(self._in_hand):
            task.cancel()

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        """Sends what is left, as far as the broker takes it in 2 s, then closes."""
        try:
            last = self._sender.submit(lambda: None)
        except RuntimeError:
            return  # Stopped before.
        await asyncio.wait([asyncio.wrap_future(last)], timeout=STOP_SECONDS)
        self._sender.shutdown(wait=False, cancel_futures=True)
        if last.done() and not last.cancelled() and "app" in self.__dict__:
            await asyncio.to_thread(self.app.close)

    def _full_name(self, name: str) -> str:
        return f"lepton.{self.service}.{name}"

    def _queue_of(self, part: str) -> str:
        return f"lepton.{self.service}" + (f".{part}" if part else "")

    def _send(self, name: str, arguments: dict[str, Any], headers: dict[str, str], priority: int, queue: str) -> None:
        try:
            with self.app.producer_pool.acquire(block=True) as producer:
                # Nobody may have taken any for days.
                if producer.channel.queue_declare(queue).message_count >= MOST_WAITING:
                    self._lose(name, f"{MOST_WAITING} wait in {queue}")
                    return
                self.app.send_task(
                    self._full_name(name),
                    kwargs=arguments,
                    headers=headers,
                    queue=queue,
                    priority=priority,
                    retry=False,
                    producer=producer,
                )
            self._found()
        except Exception as error:
            from libs.tasks.broker import redacted

            self._lose(name, redacted(repr(error), self.url))
        finally:
            self._room.release()

    def _lose(self, name: str, reason: str) -> None:
        """Says so once, not for each of the thousands that a broker's absence may cost."""
        self._lost += 1
        if self._lost == 1:
            log.warning("task_enqueue_failed", task=name, reason=reason)

    def _found(self) -> None:
        if self._lost:
            log.info("task_enqueue_works_again", lost=self._lost)
            self._lost = 0

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


def _require_url(url: str) -> None:
    """Raises ValueError without showing it: what is read as its port may be of its password."""
    try:
        urlsplit(url).port  # noqa: B018 (raises)
    except ValueError:
        raise ValueError("the broker's URL (TASKS_URL) has no number as its port; /, @, : and ? in a password have to be quoted") from None
