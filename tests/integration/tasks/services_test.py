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


async def heard_by(redis: Redis, node: str, count: int) -> list[str]:
    """The first so many jobs that a worker of `node` hears of."""
    queue = training.open_queue(redis.url, node)
    heard: list[str] = []

    async def take(workspace: str, job_id: str) -> None:
        heard.append(job_id)

    training.register(queue, take)
    worker = Worker([queue])
    await worker.start()
    await until(lambda: len(heard) >= count)
    await worker.stop()
    await queue.stop()
    return sorted(heard)


async def test_a_job_is_told_to_the_workers_of_its_node(redis: Redis) -> None:
    sender = training.open_queue(redis.url)
    for number in range(4):
        training.send_run_attempt(sender, "acme", f"job-{number}", f"n{number % 2}")
    training.send_run_attempt(sender, "acme", "of no node")
    await sender.stop()
    assert await heard_by(redis, "n0", 3) == ["job-0", "job-2", "of no node"]
    assert await heard_by(redis, "n1", 2) == ["job-1", "job-3"]


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
