"""Messages reach coroutines through a real broker, in the trace they were sent in."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from libs.launcher import SubprocessLauncher
from libs.tasks import NORMAL, URGENT, TaskQueue, Worker
from libs.tasks.queue import MOST_UNSENT
from libs.tasks.valkey import ValkeyBroker


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    broker = ValkeyBroker(SubprocessLauncher(), tmp_path / "broker.log")
    await broker.start()
    yield broker.url
    await broker.stop()


async def test_a_message_starts_its_coroutine_in_the_sender_s_trace(url: str) -> None:
    queue, tracer = TaskQueue("tests", url), TracerProvider().get_tracer("tests")
    ran: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def greet(name: str) -> None:
        await ran.put((name, trace.get_current_span().get_span_context().trace_id))

    queue.register("greet", greet)
    worker = Worker([queue], concurrency=2)
    await worker.start()
    with tracer.start_as_current_span("sender") as span:
        queue.enqueue("greet", {"name": "ada"})
    name, trace_id = await asyncio.wait_for(ran.get(), 10)
    await worker.stop()
    await queue.stop()
    assert (name, trace_id) == ("ada", span.get_span_context().trace_id)


async def test_stop_cancels_what_is_in_hand(url: str) -> None:
    queue = TaskQueue("tests", url)
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    queue.register("endless", endless)
    worker = Worker([queue], concurrency=2)
    await worker.start()
    queue.enqueue("endless", {})
    await asyncio.wait_for(started.wait(), 10)
    before = time.monotonic()
    await worker.stop()
    await asyncio.wait_for(cancelled.wait(), 1)
    await queue.stop()
    assert time.monotonic() - before < 2


async def test_a_broker_that_is_away_fails_no_sender() -> None:
    queue = TaskQueue("tests", "redis+socket:///nowhere/at/all")
    queue.enqueue("greet", {"name": "ada"})
    await queue.stop()


async def order_of(url: str, send: list[tuple[str, int, str]], *, part: str = "") -> list[str]:
    """What a worker with one slot does, in order, of the messages that waited before it started."""
    sender, queue = TaskQueue("tests", url), TaskQueue("tests", url, part=part)
    for name, priority, to in send:
        sender.enqueue("greet", {"name": name}, priority=priority, part=to)
    await sender.stop()
    greeted: list[str] = []

    async def greet(name: str) -> None:
        greeted.append(name)

    queue.register("greet", greet)
    worker = Worker([queue], concurrency=1)
    await worker.start()
    heard = [name for name, _, to in send if to in ("", part)]
    async with asyncio.timeout(20):
        while len(greeted) < len(heard):  # noqa: ASYNC110 (another thread makes it so)
            await asyncio.sleep(0.05)
    await worker.stop()
    await queue.stop()
    return greeted


async def test_what_is_urgent_overtakes_what_is_not(url: str) -> None:
    waiting = [(f"normal {number}", NORMAL, "") for number in range(4)]
    assert await order_of(url, [*waiting, ("urgent", URGENT, "")]) == ["urgent", *(name for name, _, _ in waiting)]


async def test_a_part_is_heard_by_its_own_workers_alone(url: str) -> None:
    send = [("other", URGENT, "node-2"), ("own", NORMAL, "node-1"), ("anyone", NORMAL, "")]
    assert sorted(await order_of(url, send, part="node-1")) == ["anyone", "own"]
    # It waited for its worker.
    assert "other" in await order_of(url, [("late", NORMAL, "")], part="node-2")


async def test_where_too_many_wait_the_newest_are_dropped(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.tasks.queue.MOST_WAITING", 3)
    with structlog.testing.capture_logs() as logs:
        greeted = await order_of(url, [(str(number), NORMAL, "") for number in range(3)] + [("4", NORMAL, "node-9")])
        assert greeted == ["0", "1", "2"]
        sender = TaskQueue("tests", url)
        for number in range(10):
            sender.enqueue("greet", {"name": str(number)}, part="nobody")
        await sender.stop()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("task_enqueue_failed", "3 wait in lepton.tests.nobody")]


async def test_senders_wait_for_nothing_and_keep_no_more_than_they_may() -> None:
    queue = TaskQueue("tests", "redis+socket:///nowhere/at/all")
    with structlog.testing.capture_logs() as logs:
        began = time.monotonic()
        for _ in range(5 * MOST_UNSENT):
            queue.enqueue("greet", {"name": "ada"})
        assert time.monotonic() - began < 2
        await queue.stop()
        queue.enqueue("greet", {"name": "late"})
        assert time.monotonic() - began < 6
    assert {entry["event"] for entry in logs} == {"task_enqueue_failed"}
    assert len(logs) == 1


async def test_a_stopped_worker_takes_nothing_new(url: str) -> None:
    queue = TaskQueue("tests", url)
    queue.register("greet", _never)
    worker = Worker([queue])
    await worker.start()
    await asyncio.sleep(0.5)
    await worker.stop()
    async with asyncio.timeout(10):
        while any(thread.name == "task-worker" for thread in threading.enumerate()):  # noqa: ASYNC110 (another thread makes it so)
            await asyncio.sleep(0.05)
    # Who comes next finds it.
    assert await order_of(url, [("ada", NORMAL, "")]) == ["ada"]
    await queue.stop()


async def _never(name: str) -> None:
    raise AssertionError(name)
