"""The service's Celery tasks: messages that make a worker look sooner. The job's row says what is to be done."""

from collections.abc import Awaitable, Callable

from libs.tasks import TaskQueue

RUN_ATTEMPT = "run_attempt"
Take = Callable[[str, str], Awaitable[None]]


def open_queue(url: str, node: str = "") -> TaskQueue:
    """A worker of `node` hears what is for every worker, and what is for that node's alone."""
    return TaskQueue("training", url, part=node)


def send_run_attempt(queue: TaskQueue, workspace: str, job_id: str, node: str = "") -> None:
    """To the workers of `node`, or whichever comes first."""
    queue.enqueue(RUN_ATTEMPT, {"workspace": workspace, "job_id": job_id}, part=node)


def register(queue: TaskQueue, take: Take) -> None:
    """The message is done once the job is claimed: from then on its lease stands for it."""

    async def run_attempt(workspace: str, job_id: str) -> None:
        await take(workspace, job_id)

    queue.register(RUN_ATTEMPT, run_attempt)
