"""Answers are asked for in the background while they are used, and hold while nobody can be asked."""

import asyncio

import pytest

from libs.errors import NotFound, Transient
from services.gateway.remembered import Remembered


class Asked:
    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None
        self.pause = 0.0

    async def __call__(self, key: str) -> str:
        self.count += 1
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.error:
            raise self.error
        return f"{key}{self.count}"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def remembered(asked: Asked, clock: Clock, size: int = 10) -> Remembered[str, str]:
    return Remembered(asked, fresh_seconds=1, stale_seconds=100, size=size, clock=clock)


async def test_many_ask_once() -> None:
    asked, clock = Asked(), Clock()
    asked.pause = 0.01
    known = remembered(asked, clock)
    assert await asyncio.gather(*(known.get("a") for _ in range(5))) == ["a1"] * 5
    assert known.now("a") == "a1"
    assert asked.count == 1


async def test_what_is_used_is_asked_for_again_and_nobody_waits() -> None:
    asked, clock = Asked(), Clock()
    known = remembered(asked, clock)
    await known.get("a")
    clock.now = 1.5
    assert known.now("a") == "a1"
    await asyncio.sleep(0.01)
    assert known.now("a") == "a2"


async def test_what_was_not_used_for_long_is_waited_for() -> None:
    asked, clock = Asked(), Clock()
    known = remembered(asked, clock)
    await known.get("a")
    clock.now = 10
    assert known.now("a") is None
    assert await known.get("a") == "a2"


async def test_an_old_answer_holds_while_the_other_side_is_away_but_not_for_ever() -> None:
    asked, clock = Asked(), Clock()
    known = remembered(asked, clock)
    await known.get("a")
    asked.error = Transient("away")
    clock.now = 10
    assert await known.get("a") == "a1"
    clock.now = 200
    with pytest.raises(Transient):
        await known.get("a")


async def test_a_slow_answer_is_not_waited_for_where_an_old_one_is_known() -> None:
    asked, clock = Asked(), Clock()
    known = remembered(asked, clock)
    await known.get("a")
    asked.pause = 2
    clock.now = 10
    began = asyncio.get_running_loop().time()
    assert await known.get("a") == "a1"
    assert asyncio.get_running_loop().time() - began < 1.5
    known.stop()


async def test_a_refusal_is_believed() -> None:
    asked, clock = Asked(), Clock()
    known = remembered(asked, clock)
    await known.get("a")
    asked.error = NotFound("gone")
    clock.now = 10
    with pytest.raises(NotFound):
        await known.get("a")
    assert not known.knows("a")


async def test_what_was_being_asked_when_all_was_forgotten_is_not_remembered() -> None:
    asked, clock = Asked(), Clock()
    asked.pause = 0.05
    known = remembered(asked, clock)
    asking = asyncio.create_task(known.get("a"))
    await asyncio.sleep(0.01)
    known.clear()
    await asking
    assert not known.knows("a")


async def test_the_least_recently_used_is_forgotten_first() -> None:
    known = remembered(Asked(), Clock(), size=2)
    for key in "abc":
        await known.get(key)
    assert [known.knows(key) for key in "abc"] == [False, True, True]
