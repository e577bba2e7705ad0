"""Which replicas an endpoint should have, and when to try again what does not start."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.deployment.domain.states import ACTIVE, EndpointState, ReplicaState

# After so many failures in a row the endpoint counts as failed.
FAILED_AFTER = 5
LONGEST_PAUSE_SECONDS = 300.0
# A replica that was ready for so long was no failure, whatever ended it.
PROVEN_SECONDS = 30.0


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
    """What to do: start so many of the wanted revision, let these go."""

    start: int = 0
    drain: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.start or self.drain)


def plan(wanted: Wanted, replicas: Sequence[Seen], now: float) -> Plan:
    """Old replicas serve until as many new ones are ready; those that never served, and surplus ones, go first."""
    active = [replica for replica in replicas if replica.state in ACTIVE]
    current = [replica for replica in active if replica.revision == wanted.revision]
    old = [replica for replica in active if replica.revision != wanted.revision]
    ready = sum(replica.state == ReplicaState.READY for replica in current)
    keep_old = max(0, wanted.replicas - ready)
    old_serving = [replica for replica in old if replica.state == ReplicaState.READY]
    drain = [replica.id for replica in old if replica.state != ReplicaState.READY]
    drain += [replica.id for replica in _oldest_first(old_serving)[: max(0, len(old_serving) - keep_old)]]
    surplus = max(0, len(current) - wanted.replicas)
    drain += [replica.id for replica in sorted(current, key=lambda r: (r.state == ReplicaState.READY, _newest_first(r)))[:surplus]]
    missing = max(0, wanted.replicas - len(current))
    return Plan(missing if now >= wanted.next_try_time else 0, tuple(drain))


def pause_after(failures: int) -> float:
    """Seconds before the next try: none after the first failure, then ever more."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** (failures - 1))


def state_of(wanted: Wanted, replicas: Sequence[Seen]) -> EndpointState:
    """Where the endpoint stands."""
    if wanted.replicas == 0:
        return EndpointState.STOPPED
    if any(replica.revision == wanted.revision and replica.state == ReplicaState.READY for replica in replicas):
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
