"""The service's Celery tasks: messages that make a worker look sooner. The version's row says what is to be made."""

from collections.abc import Callable

from libs.tasks import URGENT, TaskQueue

MAKE_VERSION = "make_version"


def open_queue(url: str) -> TaskQueue:
    return TaskQueue("data", url)


def send_make_version(queue: TaskQueue, workspace: str, dataset: str, number: int) -> None:
    """Somebody waits for most versions: where one worker does both, it comes before a training job's beginning."""
    queue.enqueue(MAKE_VERSION, {"workspace": workspace, "dataset": dataset, "number": number}, priority=URGENT)


def register(queue: TaskQueue, wake: Callable[[], None]) -> None:
    """The message is done once the worker looks: what it claims stands in the row's lease."""

    async def make_version(workspace: str, dataset: str, number: int) -> None:
        wake()

    queue.register(MAKE_VERSION, make_version)
