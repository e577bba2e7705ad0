"""The queue in front of a model: its order, its bounds, and who leaves it early."""

import asyncio

import numpy as np
import pytest

from libs.errors import AppError
from libs.modelkit.runtime import Runtime
from services.deployment.replica.batching import MAX_WAITING_BYTES, Batcher, Pace, warm_up

THREAD, INLINE = Pace(0, 1000, 0.001), Pace(1000, 1000, 0.001)


class Queue:
    def __init__(self, runtime, pace=INLINE, **options):
        self.sizes = []

        def model(rows):
            self.sizes.append(len(rows))
            return runtime._model(rows)

        self.runtime = Runtime(runtime.package, model, "counted")
        self.batcher = Batcher(self.runtime, pace, **options)
        self.told = {}

    def ask(self, name, rows=1, **options):
        return self.batcher.submit(self.runtime.blank(rows), lambda outcome: self.told.__setitem__(name, outcome), **options)

    async def until_told(self, count):
        async with asyncio.timeout(20):
            while len(self.told) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


def test_warm_up_runs_each_size_and_stops_at_the_first_slow_one(slow, runtime):
    quick = warm_up(runtime)
    assert quick.batch_rows & (quick.batch_rows - 1) == 0
    assert warm_up(slow(0.02)) == Pace(0, 1, pytest.approx(0.02, rel=1))


@pytest.mark.parametrize("pace", [THREAD, INLINE])
async def test_answers_are_those_of_each_ones_rows(numbers, pace):
    queue = Queue(numbers, pace)
    told = {}
    for value in (1.0, 2.0, 4.0):
        raw = numbers.read([{"a": value, "b": 1}])
        queue.batcher.submit(raw, lambda outcome, value=value: told.__setitem__(value, outcome[0]))
    queue.ask("last")
    await queue.until_told(1)
    expected = {value: numbers.predict_records([{"a": value, "b": 1}])[0]["prediction"] for value in told}
    assert told == pytest.approx(expected)
    assert (list(told), queue.sizes) == ([1.0, 2.0, 4.0], [4])


@pytest.mark.parametrize(("pace", "sizes"), [(Pace(4, 16, 0.01), [4, 2, 16, 16, 8]), (Pace(0, 16, 0.01), [6, 16, 16, 8])])
async def test_no_call_is_larger_than_what_was_warmed_up(numbers, pace, sizes):
    queue = Queue(numbers, pace)
    for name in range(6):
        queue.ask(name)
    queue.ask("large", 40)
    await queue.until_told(7)
    assert (queue.sizes, queue.told["large"].shape) == (sizes, (40,))


async def test_rows_and_bytes_that_wait_are_bounded_but_one_request_always_gets_in(numbers):
    queue = Queue(numbers, max_rows=10)
    first = queue.ask("large", 100)
    with pytest.raises(AppError) as refused:
        queue.ask("small")
    assert (refused.value.code, refused.value.meta["retry_after"]) == ("rate_limited", 1)
    queue.batcher.withdraw(first)
    queue.ask("text", size=MAX_WAITING_BYTES + 1)
    with pytest.raises(AppError):
        queue.ask("small")
    await queue.until_told(1)
    queue.ask("small")
    await queue.until_told(2)
    assert (list(queue.told), queue.batcher._rows, queue.batcher._bytes) == (["text", "small"], 0, 0)


async def test_what_waits_is_bounded_by_the_time_that_the_model_takes_for_it(slow):
    told: list[object] = []
    model = slow(0.1)
    batcher = Batcher(model, Pace(0, 8, 0.001))

    def fill() -> int:
        for count in range(10_000):
            try:
                batcher.submit(model.blank(1), told.append)
            except AppError as error:
                assert error.code == "rate_limited" and error.meta["retry_after"] >= 2
                return count
        raise AssertionError("everything was let in")

    assert fill() > 1000  # as its warm-up said
    async with asyncio.timeout(20):
        while len(told) < 64:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for waiting in list(batcher._waiting):
        batcher.withdraw(waiting)
    assert 64 < fill() < 320  # 8 rows take 0.1 s
    for waiting in list(batcher._waiting):
        batcher.withdraw(waiting)


async def test_one_batch_may_wait_however_slow_the_model_is(numbers):
    queue = Queue(numbers, Pace(0, 4, 100.0))
    for name in range(4):
        queue.ask(name)
    with pytest.raises(AppError):
        queue.ask("one more")
    await queue.until_told(4)


async def test_what_is_withdrawn_or_late_costs_nothing(numbers):
    queue = Queue(numbers)
    now = asyncio.get_running_loop().time()
    gone = queue.ask("gone")
    queue.ask("late", deadline=now - 1)
    queue.ask("kept", deadline=now + 60)
    queue.batcher.withdraw(gone)
    queue.batcher.withdraw(gone)
    await queue.until_told(2)
    assert (queue.sizes, queue.told["late"].code, sorted(queue.told)) == ([1], "deadline_exceeded", ["kept", "late"])


async def test_a_failing_call_is_told_to_its_own_requests_only(numbers):
    queue = Queue(numbers)
    model = queue.runtime._model
    queue.runtime._model = lambda rows: 1 / 0
    queue.ask("one")
    queue.ask("two")
    await queue.until_told(2)
    queue.runtime._model = model
    queue.ask("three")
    await queue.until_told(3)
    assert isinstance(queue.told["one"], ZeroDivisionError) and isinstance(queue.told["two"], ZeroDivisionError)
    assert isinstance(queue.told["three"], np.ndarray)
    assert (queue.batcher.statistics.failure.count, queue.batcher.statistics.success.count) == (2, 1)
