"""Where an endpoint answers: its ready replicas, waited for while the first one starts."""

import asyncio
import time
from collections.abc import Callable, Sequence

from libs.db import Database
from libs.errors import AppError, Conflict
from services.deployment import repository
from services.deployment.changes import Changes
from services.deployment.domain.states import EndpointState, ReplicaState
from services.deployment.tables import Endpoint, Replica

# Another instance may be the one that writes what is waited for.
LOOK_SECONDS = 0.5


class Resolver:
    """`answers` says of a ready replica whether it can be asked, as far as this process knows."""

    def __init__(self, database: Database, changes: Changes, answers: Callable[[Replica], bool] = lambda replica: True) -> None:
        self._database, self._changes, self._answers = database, changes, answers

    async def resolve(self, workspace: str, name: str, wait_seconds: float) -> list[Replica]:
        """At least one: those of the wanted model version, or of the one before while no other is ready.

        Raises NotFound; Conflict where none can be waited for; `deadline_exceeded` with what it waits for.
        """
        until = time.monotonic() + wait_seconds
        with self._changes.watching(workspace, name) as changed:
            while True:
                changed.clear()
                endpoint, replicas = await self._look(workspace, name)
                if found := self._best(endpoint, replicas):
                    return found
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

    async def _look(self, workspace: str, name: str) -> tuple[Endpoint, Sequence[Replica]]:
        async with self._database.read() as session:
            endpoint = await repository.get_endpoint(session, workspace, name)
            return endpoint, (await repository.live_replicas(session, [endpoint]))[endpoint.id]

    def _best(self, endpoint: Endpoint, replicas: Sequence[Replica]) -> list[Replica]:
        ready = [replica for replica in replicas if replica.state == ReplicaState.READY and self._answers(replica)]
        newest = max((replica.revision for replica in ready), default=0)
        return [replica for replica in ready if replica.revision == newest]


def _require_hope(endpoint: Endpoint) -> None:
    if endpoint.state == EndpointState.STOPPED:
        raise Conflict(f"endpoint '{endpoint.name}' is stopped: it has 0 replicas; update it to have 1 or more")
    if endpoint.state == EndpointState.FAILED:
        raise Conflict(f"endpoint '{endpoint.name}' has failed: {endpoint.reason}")
