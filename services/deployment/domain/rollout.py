"""Which replicas an endpoint should have, when to try again what does not start, and how a new model takes over from the old one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.errors import Conflict, Invalid, Violation
from services.deployment.domain.states import ACTIVE, EndpointState, ReplicaState, RevisionState

# After so many failures in a row the endpoint counts as failed.
FAILED_AFTER = 5
LONGEST_PAUSE_SECONDS = 300.0
# A replica that was ready for so long was no failure, whatever ended it.
PROVEN_SECONDS = 30.0
# A new model whose replicas fail so often in a row is taken back.
TAKEN_BACK_AFTER = 2
# So many requests, or failures of them, say enough of a model; where there are fewer, a step waits for them for some of its lengths.
ENOUGH_REQUESTS = 10
ENOUGH_ERRORS = 3
PATIENCE_STEPS = 3
# Requests are judged by so many seconds of them at least: what was good for an hour does not hide what is bad now.
WINDOW_SECONDS = 15.0
# Of a mean latency: what a busy machine or a network does to any model.
LATENCY_NOISE_SECONDS = 0.005


@dataclass(frozen=True)
class Wanted:
    """What the endpoint's row says should be; `replicas` is 0 once it is deleted."""

    replicas: int
    revision: int
    failures: int = 0
    next_try_time: float = 0.0


@dataclass(frozen=True)
class Seen:
    """One replica as it is."""

    id: str
    revision: int
    state: ReplicaState
    ready_time: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to do: start so many of the wanted revision and of the one beside it, let these go."""

    start: int = 0
    drain: tuple[str, ...] = ()
    start_beside: int = 0

    def __bool__(self) -> bool:
        return bool(self.start or self.drain or self.start_beside)


def plan(wanted: Wanted, replicas: Sequence[Seen], now: float, beside: Wanted | None = None) -> Plan:
    """Old replicas serve until as many new ones are ready; those that never served, and surplus ones, go first.

    `beside` is another revision that is wanted too, while one takes over from the other.
    """
    active = [replica for replica in replicas if replica.state in ACTIVE]
    current = [replica for replica in active if replica.revision == wanted.revision]
    other = [replica for replica in active if beside and replica.revision == beside.revision]
    old = [replica for replica in active if replica not in current and replica not in other]
    ready = sum(replica.state == ReplicaState.READY for replica in current)
    keep_old = max(0, wanted.replicas - ready)
    old_serving = [replica for replica in old if replica.state == ReplicaState.READY]
    drain = [replica.id for replica in old if replica.state != ReplicaState.READY]
    drain += [replica.id for replica in _oldest_first(old_serving)[: max(0, len(old_serving) - keep_old)]]
    drain += _surplus(current, wanted) + (_surplus(other, beside) if beside else [])
    return Plan(_missing(current, wanted, now), tuple(drain), _missing(other, beside, now) if beside else 0)


def _surplus(replicas: Sequence[Seen], wanted: Wanted) -> list[str]:
    first = sorted(replicas, key=lambda replica: (replica.state == ReplicaState.READY, _newest_first(replica)))
    return [replica.id for replica in first[: max(0, len(replicas) - wanted.replicas)]]


def _missing(replicas: Sequence[Seen], wanted: Wanted, now: float) -> int:
    return max(0, wanted.replicas - len(replicas)) if now >= wanted.next_try_time else 0


def pause_after(failures: int) -> float:
    """Seconds before the next try: none after the first failure, then ever more."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** (failures - 1))


def state_of(wanted: Wanted, replicas: Sequence[Seen], *, takes_over: bool = False) -> EndpointState:
    """Where the endpoint stands; one whose new model `takes_over` is not ready before it has all requests."""
    if wanted.replicas == 0:
        return EndpointState.STOPPED
    if not takes_over and any(replica.revision == wanted.revision and replica.state == ReplicaState.READY for replica in replicas):
        return EndpointState.READY
    return EndpointState.FAILED if wanted.failures >= FAILED_AFTER else EndpointState.STARTING


def was_proven(ready_time: float | None, now: float) -> bool:
    """Whether a replica served long enough for its end to be no sign of a broken model."""
    return ready_time is not None and now - ready_time >= PROVEN_SECONDS


def _oldest_first(replicas: Sequence[Seen]) -> list[Seen]:
    # Ids sort by the time of their making.
    return sorted(replicas, key=lambda replica: replica.id)


def _newest_first(replica: Seen) -> tuple[int, ...]:
    return tuple(-ord(character) for character in replica.id)


@dataclass(frozen=True)
class Rollout:
    """How a new model takes over."""

    percents: tuple[int, ...] = (10, 50, 100)
    step_seconds: float = 10.0
    max_error_ratio: float = 0.05
    max_latency_factor: float = 3.0
    shadow: bool = False
    prove_seconds: float = 60.0
    start_seconds: float = 25.0

    def require_steps(self) -> None:
        """Raises Invalid where the shares do not grow to 100."""
        rising = all(one < other for one, other in zip(self.percents, self.percents[1:], strict=False))
        if not rising or self.percents[-1:] != (100,):
            shown = ", ".join(map(str, self.percents))
            raise Invalid.of([Violation("rollout.canary_percents", f"must grow and end with 100, as in 10, 50, 100; got {shown}")])

    def after(self, percent: int) -> int:
        """The share of the next step."""
        return next((each for each in self.percents if each > percent), 100)


@dataclass(frozen=True)
class Served:
    """What became of a revision's requests since it was last begun to count them."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0

    @property
    def error_ratio(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Newcomer:
    """A revision beside the one that serves. `starts_since`: when a process took the oldest of its replicas that are not ready yet.

    `failure` is what its replicas last ended by, `failures` in a row.
    """

    state: RevisionState
    percent: int
    change_time: float
    ready: int
    starts_since: float | None = None
    served: Served = Served()
    failures: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Move:
    """Where a newcomer goes."""

    state: RevisionState
    percent: int
    reason: str = ""


def next_move(rollout: Rollout, new: Newcomer, old: Served, replicas: int, now: float) -> Move | None:
    """What is due, one step at a time; None while there is nothing to do. `replicas`: what the endpoint wants to have."""
    if new.state == RevisionState.SPLIT:
        return None  # Whoever gave it its share takes it back.
    if why := why_back(rollout, new, old, now):
        return Move(RevisionState.ROLLED_BACK, 0, why)
    if replicas == 0 and new.state != RevisionState.SHADOWING and not rollout.shadow:
        return Move(RevisionState.ACTIVE, 100)  # Nobody is served meanwhile.
    match new.state:
        case RevisionState.STARTING if replicas and new.ready >= beside_count(rollout, new, replicas):
            return Move(RevisionState.SHADOWING, 0) if rollout.shadow else _step(rollout, 0)
        case RevisionState.CANARY if _step_is_over(rollout, new, now) and new.ready >= beside_count(rollout, new, replicas):
            return _step(rollout, new.percent)
        case RevisionState.PROVING if new.ready and now - new.change_time >= rollout.prove_seconds:
            return Move(RevisionState.ACTIVE, 100)
    return None


def why_back(rollout: Rollout, new: Newcomer, old: Served, now: float) -> str:
    """Why the newcomer is taken back; empty where it may go on."""
    if new.failures >= TAKEN_BACK_AFTER:
        return f"its replicas failed {new.failures} times: {new.failure}"
    if _hangs(rollout, new, now):
        return f"its first replica was not ready within {rollout.start_seconds:g} s; rollout.start_seconds gives it longer"
    if new.state not in (RevisionState.CANARY, RevisionState.PROVING):
        return ""
    seen, waited = new.served, now - new.change_time >= PATIENCE_STEPS * rollout.step_seconds
    enough = seen.requests >= ENOUGH_REQUESTS or seen.errors >= ENOUGH_ERRORS or (waited and seen.requests > 0)
    if enough and seen.error_ratio > max(rollout.max_error_ratio, old.error_ratio):
        return f"{seen.errors} of {seen.requests} requests failed; {rollout.max_error_ratio:.2%} may, and {old.error_ratio:.2%} did before"
    if min(seen.requests, old.requests) < ENOUGH_REQUESTS:
        return ""
    slowest = max(old.mean_seconds * rollout.max_latency_factor, old.mean_seconds + LATENCY_NOISE_SECONDS)
    if seen.mean_seconds > slowest:
        return f"a request takes {seen.mean_seconds * 1e3:.3g} ms and took {old.mean_seconds * 1e3:.3g} ms before"
    return ""


def _hangs(rollout: Rollout, new: Newcomer, now: float) -> bool:
    if new.state != RevisionState.STARTING or new.ready or new.starts_since is None:
        return False
    return now - new.starts_since >= rollout.start_seconds


def beside_count(rollout: Rollout, new: Newcomer, replicas: int) -> int:
    """How many replicas a newcomer has where the endpoint wants `replicas`: those of its next step, so that a step finds them ready."""
    match new.state:
        case RevisionState.STARTING if not rollout.shadow:
            return share_of(replicas, rollout.percents[0])
        case RevisionState.CANARY:
            return share_of(replicas, rollout.after(new.percent))
        case RevisionState.SPLIT:
            return share_of(replicas, new.percent)
    return replicas


def share_of(replicas: int, percent: int) -> int:
    """At least one, where there are any."""
    return math.ceil(replicas * percent / 100)


def is_old_window(window_time: float, served: Served, now: float) -> bool:
    """Whether to count anew."""
    return served.requests >= ENOUGH_REQUESTS and now - window_time >= WINDOW_SECONDS


def shares(wanted: Mapping[int, int], ready: Sequence[int]) -> dict[int, int]:
    """Percents of the revisions that have `ready` replicas, 100 together: what a missing one should have goes to the others.

    `wanted` has the share of each that may have one; where none of those that are ready has any, the newest gets all.
    """
    able = {revision: wanted[revision] for revision in sorted(wanted) if revision in ready}
    total = sum(able.values())
    if not able:
        return {}
    if total == 0:
        return {revision: 100 if revision == max(able) else 0 for revision in able}
    found = {revision: percent * 100 // total for revision, percent in able.items()}
    found[max(able, key=lambda revision: able[revision])] += 100 - sum(found.values())
    return found


def require_split(traffic: Sequence[tuple[int, int]], old: int, new: int | None, ready: Sequence[int]) -> int:
    """The share of the new revision that a manual split asks for. Raises Invalid or Conflict where it cannot be had exactly."""
    asked = dict(traffic)
    if len(asked) != len(traffic):
        raise Invalid.of([Violation("traffic", "names a revision a second time")])
    if (total := sum(asked.values())) != 100:
        raise Invalid.of([Violation("traffic", f"the percents must be 100 together, got {total}")])
    for revision in sorted(asked):
        if revision not in (old, new):
            served = f"{old} and {new}" if new else f"{old} alone"
            raise Conflict(f"revision {revision} has no replicas: the endpoint has revision {served}; update it to another model instead")
        if asked[revision] and revision not in ready:
            raise Conflict(f"revision {revision} has no ready replica yet; try again when it has one")
    return asked.get(new, 0) if new else 0


def _step(rollout: Rollout, percent: int) -> Move:
    after = rollout.after(percent)
    return Move(RevisionState.PROVING if after == 100 else RevisionState.CANARY, after)


def _step_is_over(rollout: Rollout, new: Newcomer, now: float) -> bool:
    """With enough requests, with none at all, or after all patience."""
    passed = now - new.change_time
    enough = new.served.requests >= ENOUGH_REQUESTS or new.served.requests == 0
    return passed >= rollout.step_seconds * (1 if enough else PATIENCE_STEPS)
