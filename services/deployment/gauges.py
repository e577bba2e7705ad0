"""What the deployment service shows of its rows to who watches the platform."""

from libs.db import Database
from libs.telemetry import Sampler, gauge
from services.deployment import repository
from services.deployment.domain.states import LIVE, EndpointState

_endpoints = gauge("lepton_endpoints", "Endpoints that are not deleted, by state.", ("state",))
_replicas = gauge("lepton_replicas", "Replicas that have not ended, by state.", ("state",))


def endpoint_gauges(database: Database) -> Sampler:
    """A component."""

    async def sample() -> None:
        async with database.read() as session:
            endpoints, replicas = await repository.states_of_all_workspaces(session)
        _endpoints.show({(state,): endpoints.get(state, 0) for state in EndpointState})
        _replicas.show({(state,): replicas.get(state, 0) for state in LIVE})

    return Sampler("deployment", sample, [_endpoints, _replicas])
