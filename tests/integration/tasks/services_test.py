"""The messages of the data and the training service, on a real Redis, as their workers hear them."""

import asyncio
from collections.abc import Callable

from libs.tasks import Worker
from services.data import tasks as data
from services.training import tasks as training
from tests.redis import Redis


async def until(check: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0.05)


async def test_a_job_is_told_to_the_workers_of_its_node(redis: Redis) -> None:
    sender = training.open_queue(redis.url)
    heard: dict[str, list[tuple[str, str]]] = {"n1": [], "n2": []}
    queues, workers = [], []
    for node, jobs in heard.items():

        async def take(workspace: str, job_id: str, jobs: list[tuple[str, str]] = jobs) -> None:
            jobs.append((workspace, job_id))

        queues.append(training.open_queue(redis.url, node))
        training.register(queues[-1], take)
        workers.append(Worker([queues[-1]], concurrency=2))
        await workers[-1].start()
    for number in range(6):
        training.send_run_attempt(sender, "acme", f"job-{number}", f"n{number % 2 + 1}")
    await until(lambda: sum(map(len, heard.values())) == 6)
    assert sorted(heard["n1"]) == [("acme", f"job-{number}") for number in (0, 2, 4)]
    assert sorted(heard["n2"]) == [("acme", f"job-{number}") for number in (1, 3, 5)]
    # One that is for nobody in particular comes to one of them.
    training.send_run_attempt(sender, "acme", "any")
    await until(lambda: sum(map(len, heard.values())) == 7)
    for component in (*workers, *queues, sender):
        await component.stop()


async def test_a_version_comes_before_the_jobs_that_wait(redis: Redis) -> None:
    queues = [data.open_queue(redis.url), training.open_queue(redis.url)]
    order: list[str] = []

    async def take(workspace: str, job_id: str) -> None:
        order.append(job_id)

    training.register(queues[1], take)
    data.register(queues[0], lambda: order.append("version"))
    senders = [data.open_queue(redis.url), training.open_queue(redis.url)]
    for number in range(3):
        training.send_run_attempt(senders[1], "acme", f"job-{number}")
    await senders[1].stop()
    data.send_make_version(senders[0], "acme", "wdbc", 1)
    await senders[0].stop()
    worker = Worker(queues, concurrency=1)
    await worker.start()
    await until(lambda: len(order) == 4)
    assert order == ["version", "job-0", "job-1", "job-2"]
    for component in (worker, *queues):
        await component.stop()
