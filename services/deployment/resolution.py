"""Where an endpoint answers: its ready replicas and what each revision gets, waited for while the first one starts."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from libs.db import Database
from libs.errors import AppError, Conflict
from services.deployment import repository
from services.deployment.changes import Changes
from services.deployment.domain.rollout import shares
from services.deployment.domain.states import EndpointState, ReplicaState, RevisionState
from services.deployment.handlers import scaling
from services.deployment.tables import Endpoint, Replica, Revision
from services.deployment.wire import Routes

# Another instance may be the one that writes what is waited for.
LOOK_SECONDS = 0.5


class Resolver:
    """`answers` says of a ready replica whether it can be asked, as far as this process knows; `woken` is called when one is to start."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        woken: Callable[[], Any],
        answers: Callable[[Replica], bool] = lambda replica: True,
    ) -> None:
        self._database, self._changes, self._woken, self._answers = database, changes, woken, answers

    async def resolve(self, workspace: str, name: str, wait_seconds: float) -> Routes:
        """At least one replica: of the revisions that have a share, or of one before while none of these is ready. Wakes who sleeps.

        Raises NotFound; Conflict where none can be waited for; `deadline_exceeded` with what it waits for.
        """
        until = time.monotonic() + wait_seconds
        with self._changes.watching(workspace, name) as changed:
            while True:
                changed.clear()
                endpoint, revisions, replicas = await self._look(workspace, name)
                if found := _routes(revisions, [r for r in replicas if r.state == ReplicaState.READY and self._answers(r)]):
                    return found
                if endpoint.sleeps:
                    await self._wake(workspace, name)
                    continue
                _require_hope(endpoint)
                left = until - time.monotonic()
                if left <= 0:
                    raise AppError(
                        f"endpoint '{name}' is not ready yet: {endpoint.reason}; try again in a moment", code="deadline_exceeded"
                    )
                try:
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def _look(self, workspace: str, name: str) -> tuple[Endpoint, Sequence[Revision], Sequence[Replica]]:
        async with self._database.read() as session:
            endpoint = await repository.get_endpoint(session, workspace, name)
            revisions = (await repository.wanted_revisions(session, [endpoint]))[endpoint.id]
            return endpoint, revisions, (await repository.live_replicas(session, [endpoint]))[endpoint.id]

    async def _wake(self, workspace: str, name: str) -> None:
        async with self._database.unit() as unit:
            unit.after_commit(self._woken)
            await scaling.wake(unit, workspace=workspace, name=name, now=time.time())


def _routes(revisions: Sequence[Revision], ready: Sequence[Replica]) -> Routes | None:
    """Shares of those that are ready; a shadow has none. Where no wanted revision is ready, the newest of those before gets all."""
    shadow = next((each.number for each in revisions if each.rules.shadow and each.state != RevisionState.ACTIVE), 0)
    numbers = {replica.revision for replica in ready}
    found = shares({each.number: each.percent for each in revisions if each.number != shadow}, sorted(numbers))
    if not found and (others := numbers - {shadow}):
        found = {max(others): 100}
    if not found:
        return None
    percents = {number: percent for number, percent in found.items() if percent}
    copied = shadow if shadow in numbers and any(each.state == RevisionState.SHADOWING for each in revisions) else 0
    asked = [replica for replica in ready if replica.revision in percents or replica.revision == copied]
    largest = max(percents, key=lambda number: percents[number])
    return Routes(next(replica.model for replica in asked if replica.revision == largest), asked, percents, copied)


def _require_hope(endpoint: Endpoint) -> None:
    if endpoint.state == EndpointState.STOPPED:
        raise Conflict(f"endpoint '{endpoint.name}' is stopped: it has 0 replicas; update it to have 1 or more")
    if endpoint.state == EndpointState.FAILED:
        raise Conflict(f"endpoint '{endpoint.name}' has failed: {endpoint.reason}")
