"""Looks at the requests of endpoints that scale, as part of the reconciler's look, and writes down what they need."""

import time
from collections.abc import Mapping, Sequence

import structlog

from libs.db import Database
from services.deployment.domain.scaling import Fleet, Load, Window, decide
from services.deployment.domain.states import ReplicaState
from services.deployment.handlers.rollouts import Pair
from services.deployment.handlers.scaling import load_of, rescale
from services.deployment.tables import Endpoint, Replica, Revision

log = structlog.get_logger()


class Scaler:
    """Remembers the last moments of each endpoint: who begins to plan takes nothing away before it has seen as many itself."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._windows: dict[str, Window] = {}

    async def step(
        self,
        endpoints: Sequence[Endpoint],
        live: Sequence[Replica],
        revisions: Mapping[str, Sequence[Revision]],
        traffic: Mapping[str, Mapping[int, Load]],
    ) -> bool:
        """One look; whether it changed anything. `revisions` and `traffic` are by endpoint id."""
        changed, now = False, time.time()
        scaled = [endpoint for endpoint in endpoints if endpoint.bounds and endpoint.delete_time is None]
        self._windows = {endpoint.id: self._windows.get(endpoint.id) or Window() for endpoint in scaled}
        for endpoint in scaled:
            own = revisions.get(endpoint.id, ())
            load, window = load_of(own, traffic.get(endpoint.id, {})), self._windows[endpoint.id]
            window.add(now, load.needs(endpoint.scaling))
            if decision := decide(endpoint.scaling, _fleet(endpoint, live, own), load, window.peak, now):
                async with self._database.unit() as unit:
                    await rescale(unit, seen=endpoint, decision=decision, now=now)
                log.info("endpoint_scaled", endpoint=endpoint.name, workspace=endpoint.workspace, replicas=decision.replicas)
                changed = True
        return changed


def _fleet(endpoint: Endpoint, live: Sequence[Replica], revisions: Sequence[Revision]) -> Fleet:
    ready = [r.ready_time for r in live if r.endpoint_id == endpoint.id and r.state == ReplicaState.READY and r.ready_time]
    pair = Pair.of(endpoint, revisions)
    return Fleet(endpoint.replicas, min(ready, default=None), pair is not None and pair.changes_model)
