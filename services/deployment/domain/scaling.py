"""How many replicas an endpoint should have by what its requests need, and why."""

import math
from collections import deque
from dataclasses import dataclass

# Fewer replicas are wanted only once so many seconds have needed no more.
STABLE_SECONDS = 30.0
# What a gateway has not told for so long is over.
REPORT_SECONDS = 10.0
# A sum of means is no exact number.
_NOISE = 1e-6


@dataclass(frozen=True)
class Scaling:
    """Bounds, what one replica should have in hand, and when the last one of an endpoint that may sleep goes."""

    least: int = 1
    most: int = 1
    target_in_flight: float = 8.0
    idle_seconds: float = 300.0

    def bounded(self, replicas: int) -> int:
        """The nearest number that may be."""
        return min(max(replicas, self.least), self.most)


@dataclass(frozen=True)
class Load:
    """What the requests need: those that replicas have in hand, those that are held for one, and when one was seen last."""

    in_flight: float = 0.0
    waiting: int = 0
    last_request_time: float = 0.0

    def needs(self, scaling: Scaling) -> int:
        """Replicas, whatever the bounds say."""
        return math.ceil((self.in_flight + self.waiting) / scaling.target_in_flight - _NOISE)


@dataclass(frozen=True)
class Fleet:
    """What there is: replicas that are wanted, when the first of the ready ones became so (None: none is), and whether a new model is on
    its way."""

    wanted: int
    first_ready_time: float | None = None
    changes_model: bool = False


@dataclass(frozen=True)
class Decision:
    """So many from now on."""

    replicas: int
    why: str


class Window:
    """The needs of the last moments; what was before its first look is not known."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def add(self, now: float, needed: int) -> None:
        """One look. A look that comes late makes the window begin anew: nobody looked meanwhile."""
        if self._since is None or now - self._seen[-1][0] > REPORT_SECONDS or now < self._seen[-1][0]:
            self._since = now
            self._seen.clear()
        self._seen.append((now, needed))
        while self._seen[0][0] < now - STABLE_SECONDS:
            self._seen.popleft()

    @property
    def peak(self) -> int | None:
        """The most that was needed; None where it was looked at for too short a time to say."""
        if self._since is None or self._seen[-1][0] - self._since < STABLE_SECONDS:
            return None
        return max(needed for _, needed in self._seen)


def decide(scaling: Scaling, fleet: Fleet, load: Load, peak: int | None, now: float) -> Decision | None:
    """Up at once; down once `peak`, of the last moments, allows it; to none once nobody has asked for long. None: as it is."""
    bounded, needed = scaling.bounded(fleet.wanted), load.needs(scaling)
    if bounded != fleet.wanted:
        return Decision(bounded, f"{'at least' if bounded > fleet.wanted else 'at most'} {bounded} may be")
    if (more := min(needed, scaling.most)) > fleet.wanted:
        return Decision(more, _needs(scaling, load))
    if peak is None or fleet.wanted == 0:
        return None
    fewer = max(peak, needed, scaling.least, 1)
    if fewer < fleet.wanted:
        return Decision(fewer, f"the last {STABLE_SECONDS:g} s needed no more, {scaling.target_in_flight:g} requests in hand a replica")
    if scaling.least == 0 and peak == needed == 0 and _is_idle(scaling, fleet, load, now):
        return Decision(0, f"nobody asked for {scaling.idle_seconds:g} s")
    return None


def _is_idle(scaling: Scaling, fleet: Fleet, load: Load, now: float) -> bool:
    """Where none is ready yet, somebody may wait for the first one."""
    if fleet.first_ready_time is None or fleet.changes_model:
        return False
    return now - max(fleet.first_ready_time, load.last_request_time) >= scaling.idle_seconds


def _needs(scaling: Scaling, load: Load) -> str:
    held = f" and {load.waiting} held" if load.waiting else ""
    return f"{load.in_flight:.1f} requests in hand{held}, {scaling.target_in_flight:g} a replica"
