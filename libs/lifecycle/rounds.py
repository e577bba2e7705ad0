"""Many things that one step of a loop looks at, each by itself: reconcilers. Knows neither the things nor what is done about them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass

import structlog

from libs.errors import Transient

log = structlog.get_logger()


@dataclass(frozen=True)
class Turn:
    """`act` is called for what `key` names, and not again before `pause` seconds have passed."""

    key: Hashable
    act: Callable[[], Awaitable[None]]
    pause: float = 0.0


class Rounds:
    """Gives turns: so many at once, and one's trouble is not the others'. `clock` tells seconds that never go back.

    A pause counts from the turn before; who was left out of a round is forgotten, and has the next turn at once.
    """

    def __init__(self, name: str, *, at_once: int = 8, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._slots = asyncio.Semaphore(at_once)
        self._begun: dict[Hashable, float] = {}

    async def go(self, turns: Iterable[Turn]) -> None:
        """One round: all whose pause is over."""
        now = self._clock()
        asked = list(turns)
        due = [turn for turn in asked if now - self._begun.get(turn.key, float("-inf")) >= turn.pause]
        before, self._begun = self._begun, dict.fromkeys((turn.key for turn in due), now)
        self._begun |= {turn.key: before[turn.key] for turn in asked if turn.key not in self._begun}
        await asyncio.gather(*(self._give(turn) for turn in due))

    def note(self, key: Hashable) -> None:
        """It had its turn just now, elsewhere."""
        self._begun[key] = self._clock()

    def forget(self) -> None:
        """Nobody's pause holds any more."""
        self._begun.clear()

    async def _give(self, turn: Turn) -> None:
        async with self._slots:
            try:
                await turn.act()
            except Transient as error:
                log.warning("turn_put_off", rounds=self._name, key=turn.key, error=str(error))
            except Exception:
                log.exception("turn_failed", rounds=self._name, key=turn.key)
