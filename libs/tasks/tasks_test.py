"""Messages reach coroutines through a real broker, in the trace they were sent in."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from libs.launcher import SubprocessLauncher
from libs.tasks import TaskQueue, Worker
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
        queue.enqueue("greet", name="ada")
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
    queue.enqueue("endless")
    await asyncio.wait_for(started.wait(), 10)
    before = time.monotonic()
    await worker.stop()
    await asyncio.wait_for(cancelled.wait(), 1)
    await queue.stop()
    assert time.monotonic() - before < 2


async def test_a_broker_that_is_away_fails_no_sender() -> None:
    queue = TaskQueue("tests", "redis+socket:///nowhere/at/all")
    queue.enqueue("greet", name="ada")
    await queue.stop()
