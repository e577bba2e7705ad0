"""What the training service shows of its rows to who watches the platform."""

from libs.db import Database
from libs.telemetry import Sampler, gauge
from services.training import repository
from services.training.domain.states import State

_jobs = gauge("lepton_training_jobs", "Training jobs, by state.", ("state",))


def job_gauges(database: Database) -> Sampler:
    """A component."""

    async def sample() -> None:
        async with database.read() as session:
            counts = await repository.states_of_all_workspaces(session)
        _jobs.show({(state,): counts.get(state, 0) for state in State})

    return Sampler("training", sample, [_jobs])
