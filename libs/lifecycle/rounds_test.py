"""Turns come when they are due, some at once, and never fail each other."""

import asyncio
from collections.abc import Awaitable, Callable

from libs.errors import Transient
from libs.lifecycle import Rounds, Turn
from libs.testing import FakeClock


class Desk:
    """Notes whose turn it was."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def turn(self, key: str, pause: float = 0.0, error: Exception | None = None) -> Turn:
        async def act() -> None:
            self.seen.append(key)
            if error:
                raise error

        return Turn(key, act, pause)

    def taken(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


async def test_none_comes_again_before_its_pause() -> None:
    clock, desk = FakeClock(), Desk()
    rounds = Rounds("test", clock=clock)
    turns = [desk.turn("a", 2), desk.turn("b", 5), desk.turn("c")]
    seen = []
    for _ in range(4):
        await rounds.go(turns)
        seen.append("".join(desk.taken()))
        clock.advance(2)
    assert seen == ["abc", "ac", "ac", "abc"]


async def test_who_is_in_a_hurry_does_not_wait() -> None:
    clock, desk = FakeClock(), Desk()
    rounds = Rounds("test", clock=clock)
    for pause in (2, 2, 0, 2):
        await rounds.go([desk.turn("a", pause)])
    assert desk.taken() == ["a", "a"]
    rounds.forget()
    await rounds.go([desk.turn("a", 2)])
    rounds.note("b")
    await rounds.go([desk.turn("a", 2), desk.turn("b", 2)])
    assert desk.taken() == ["a"]
    clock.advance(2)
    await rounds.go([desk.turn("b", 2)])
    assert desk.taken() == ["b"]


async def test_who_was_left_out_is_forgotten() -> None:
    desk = Desk()
    rounds = Rounds("test", clock=FakeClock())
    for turns in ([desk.turn("a", 9)], [], [desk.turn("a", 9)]):
        await rounds.go(turns)
    assert desk.taken() == ["a", "a"]


async def test_one_s_trouble_is_not_the_others() -> None:
    desk = Desk()
    rounds = Rounds("test", at_once=1)
    await rounds.go([desk.turn("a", error=Transient("away")), desk.turn("b", error=RuntimeError("broken")), desk.turn("c")])
    assert desk.taken() == ["a", "b", "c"]


async def test_so_many_at_once_and_no_more() -> None:
    running, most = 0, 0

    def slow() -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

        return act

    await Rounds("test", at_once=3).go(Turn(number, slow()) for number in range(10))
    assert most == 3
