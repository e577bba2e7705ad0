"""How revisions come, take over and are taken back: part of whatever unit looks at their endpoint."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from libs.db import Unit
from libs.errors import AppError, Conflict, Invalid, Violation
from services.deployment import repository
from services.deployment.domain.resources import Needs
from services.deployment.domain.rollout import (
    Newcomer,
    Rollout,
    Wanted,
    beside_count,
    is_old_window,
    next_move,
    require_split,
    share_of,
)
from services.deployment.domain.states import ACTIVE, TAKING_OVER, ReplicaState, RevisionState
from services.deployment.handlers.served import Served
from services.deployment.tables import Endpoint, Replica, Revision


@dataclass(frozen=True)
class Pair:
    """What an endpoint wants: the revision that serves, and perhaps one beside it."""

    serving: Revision
    beside: Revision | None = None

    @classmethod
    def of(cls, endpoint: Endpoint, revisions: Sequence[Revision]) -> "Pair | None":
        """None where the wanted revision has no row: code of the release before wanted it."""
        serving = next((each for each in revisions if each.state == RevisionState.ACTIVE), None)
        if serving is None or endpoint.revision not in [each.number for each in revisions]:
            return None
        return cls(serving, next((each for each in revisions if each is not serving), None))

    @property
    def takes_over(self) -> bool:
        """Whether the wanted model does not have all requests that it will have."""
        return self.beside is not None and self.beside.state in TAKING_OVER and not self.beside.rules.shadow

    @property
    def changes_model(self) -> bool:
        """Whether the one beside must be seen at work."""
        return self.takes_over or (self.beside is not None and self.beside.state == RevisionState.PROVING)

    def newcomer(self, endpoint: Endpoint, live: Iterable[Replica]) -> Newcomer:
        """The one beside, for decisions."""
        assert self.beside
        its = [each for each in live if each.revision == self.beside.number]
        ready = sum(each.state == ReplicaState.READY for each in its)
        starts = [each.claim_time for each in its if each.state == ReplicaState.STARTING and each.claim_time is not None]
        row = endpoint if endpoint.revision == self.beside.number else self.beside
        failure = AppError.from_dict(row.error).detail if row.error else ""
        return self.beside.as_newcomer(ready, min(starts, default=None), row.failures, failure)

    def wanted(self, endpoint: Endpoint, live: Iterable[Replica]) -> tuple[Wanted, Wanted | None]:
        """How many replicas of each."""
        if self.beside is None:
            return _wanted(endpoint, self.serving, endpoint.replicas), None
        splits = self.beside.state == RevisionState.SPLIT
        count = beside_count(self.beside.rules, self.newcomer(endpoint, live), endpoint.replicas)
        serving = share_of(endpoint.replicas, self.serving.percent) if splits else endpoint.replicas
        return _wanted(endpoint, self.serving, serving), _wanted(endpoint, self.beside, count)

    def is_due(self, endpoint: Endpoint, live: Sequence[Replica], now: float) -> bool:
        """Whether `advance` would change anything."""
        if self.beside is None:
            return False
        move = next_move(self.beside.rules, self.newcomer(endpoint, live), self.serving.served, endpoint.replicas, now)
        return move is not None or any(is_old_window(each.window_time, each.served, now) for each in self._judged())

    def _judged(self) -> list[Revision]:
        """Those whose requests are compared, and go on coming."""
        return [each for each in (self.serving, self.beside) if each and each.percent and self.changes_model]


async def pair_of(unit: Unit, endpoint: Endpoint, *, now: float) -> Pair:
    """What is wanted; the first look at a revision that another release wanted gives it its row."""
    found = (await repository.wanted_revisions(unit.session, [endpoint]))[endpoint.id]
    if pair := Pair.of(endpoint, found):
        return pair
    for each in found:
        each.go(RevisionState.REPLACED, 0, now, f"the endpoint serves {endpoint.reference} now")
    row = _row(endpoint, now)
    if known := await repository.find_revision(unit.session, endpoint, endpoint.revision):
        await unit.session.delete(known)
        await unit.session.flush()
    return Pair(await unit.insert(row))


async def advance(unit: Unit, endpoint: Endpoint, live: Sequence[Replica], *, now: float) -> tuple[Pair, Revision | None]:
    """Takes all steps that are due; answers what is wanted then, and what was taken back."""
    pair = await pair_of(unit, endpoint, now=now)
    while pair.beside:
        move = next_move(pair.beside.rules, pair.newcomer(endpoint, live), pair.serving.served, endpoint.replicas, now)
        if move is None:
            break
        if move.state == RevisionState.ROLLED_BACK:
            return take_back(endpoint, pair, live, reason=move.reason, now=now), pair.beside
        if move.state == RevisionState.ACTIVE:
            pair = _take_over(pair, now)
        else:
            _share(pair, move.state, move.percent, now)
    for each in pair._judged():
        if is_old_window(each.window_time, each.served, now):
            each.count_anew(now)
    return pair, None


def take_back(endpoint: Endpoint, pair: Pair, live: Iterable[Replica], *, reason: str, now: float) -> Pair:
    """All requests go to the old one at once, and its model is the wanted one again."""
    beside, serving = pair.beside, pair.serving
    assert beside
    beside.go(RevisionState.ROLLED_BACK, 0, now, reason)
    serving.percent = 100
    serving.count_anew(now)
    for each in live:
        if each.revision == beside.number and each.state in ACTIVE:
            each.state, each.reason = ReplicaState.DRAINING, f"{beside.reference} was taken back"
    if endpoint.revision == beside.number:
        endpoint.want(serving)
        endpoint.update_time = now
    return Pair(serving)


async def change_model(
    unit: Unit, endpoint: Endpoint, served: Served, rollout: Rollout | None, live: Sequence[Replica], *, traceparent: str, now: float
) -> bool:
    """Another model is another revision beside the one that serves; where that has no ready replica it takes its place at once.

    The model that is beside already is promoted, where it was a shadow; the model that serves ends a roll-out. False: nothing changed.
    """
    pair = await pair_of(unit, endpoint, now=now)
    serving, beside = pair.serving, pair.beside
    if beside and served.is_of(beside):
        return _promote(endpoint, beside, rollout, now)
    if beside and beside.state == RevisionState.PROVING:
        pair = _take_over(pair, now)
        serving, beside = pair.serving, None
    if beside:
        beside.go(RevisionState.REPLACED, 0, now, "another update came before it had taken over")
        serving.percent = 100
    if served.is_of(serving):
        if beside:
            endpoint.want(serving)
        return beside is not None
    rules = rollout or Rollout()
    [newest] = await repository.last_revisions(unit.session, endpoint, 1)
    number = max(newest.number, endpoint.revision) + 1
    revision = _row(endpoint, now, number=number, served=served, traceparent=traceparent)
    revision.roll_by(rules)
    if any(each.revision == serving.number and each.state == ReplicaState.READY for each in live) and endpoint.replicas:
        revision.go(RevisionState.STARTING, 0, now)
    elif rules.shadow:
        raise Conflict("no replica is ready whose answers a shadow's could be compared with; try again when the endpoint is ready")
    else:
        serving.go(RevisionState.REPLACED, 0, now, f"the endpoint serves {revision.reference} now")
    await unit.insert(revision)
    if not rules.shadow:
        endpoint.want(revision)
    return True


async def change_rollout(unit: Unit, endpoint: Endpoint, rollout: Rollout, *, now: float) -> bool:
    """Promotes a shadow. Raises Invalid where there is none."""
    beside = (await pair_of(unit, endpoint, now=now)).beside
    if beside is None or not beside.rules.shadow:
        raise Invalid.of([Violation("rollout", "there is nothing to roll out: name another model with it")])
    return _promote(endpoint, beside, rollout, now)


async def split(
    unit: Unit, endpoint: Endpoint, traffic: Sequence[tuple[int, int]], live: Sequence[Replica], *, now: float
) -> Revision | None:
    """Shares as they were asked for; answers what was taken back by them. Raises Invalid or Conflict where they cannot be had exactly."""
    pair = await pair_of(unit, endpoint, now=now)
    beside = pair.beside
    ready = [each.revision for each in live if each.state == ReplicaState.READY]
    percent = require_split(traffic, pair.serving.number, beside.number if beside else None, ready)
    if beside is None:
        return None
    if percent == 0:
        take_back(endpoint, pair, live, reason=f"all requests were given to revision {pair.serving.number}", now=now)
        return beside
    beside.roll_by(replace(beside.rules, shadow=False))
    _share(pair, RevisionState.SPLIT if percent < 100 else RevisionState.PROVING, percent, now)
    if endpoint.revision != beside.number:
        endpoint.want(beside)
    return None


def _promote(endpoint: Endpoint, beside: Revision, rollout: Rollout | None, now: float) -> bool:
    rules = rollout or replace(beside.rules, shadow=False)
    if not beside.rules.shadow or rules.shadow:
        if rollout and rollout != beside.rules:
            raise Conflict(f"{beside.reference} is being rolled out by other rules already; they cannot be changed on the way")
        return False
    beside.roll_by(rules)
    beside.go(RevisionState.STARTING, 0, now)
    endpoint.want(beside)
    return True


def _take_over(pair: Pair, now: float) -> Pair:
    serving = pair.beside
    assert serving
    pair.serving.go(RevisionState.REPLACED, 0, now, f"the endpoint serves {serving.reference} now")
    serving.go(RevisionState.ACTIVE, 100, now)
    return Pair(serving)


def _share(pair: Pair, state: RevisionState, percent: int, now: float) -> None:
    assert pair.beside
    pair.beside.go(state, percent, now)
    pair.beside.count_anew(now)
    pair.serving.percent = 100 - percent
    # Of one that gets no more, what it last did is what the other is compared with.
    if pair.serving.percent:
        pair.serving.count_anew(now)


def _wanted(endpoint: Endpoint, revision: Revision, count: int) -> Wanted:
    row = endpoint if endpoint.revision == revision.number else revision
    return Wanted(count, revision.number, row.failures, row.next_try_time)


def _row(endpoint: Endpoint, now: float, *, number: int = 0, served: Served | None = None, traceparent: str = "") -> Revision:
    """Of the wanted model, or of the one that is `served` instead."""
    needs = served.complete(Needs(**endpoint.resources)) if served else endpoint.needs
    return Revision(
        endpoint_id=endpoint.id,
        number=number or endpoint.revision,
        workspace=endpoint.workspace,
        endpoint=endpoint.name,
        model=served.model if served else endpoint.model,
        model_version=served.number if served else endpoint.model_version,
        files=served.files if served else endpoint.files,
        accelerator=needs.accelerator,
        device_count=needs.count,
        cpu_millis=needs.cpu_millis,
        memory_bytes=needs.memory_bytes,
        traceparent=traceparent or endpoint.traceparent,
        create_time=now,
        change_time=now,
        window_time=now,
    )
