"""What is shown of jobs and attempts."""

import time

from libs.testing.metrics import metrics_read
from services.training.conftest import Platform
from services.training.domain.retry import Outcome
from services.training.gauges import job_gauges
from services.training.handlers import attempts, jobs


async def claimed(platform: Platform) -> attempts.Lease:
    job_id = (await platform.submit()).id
    await platform.in_state(job_id, "starting")
    async with platform.database.unit() as unit:
        found = await attempts.claim(unit, workspace="acme", job_id=job_id, holder="w", seconds=60, now=time.time())
    assert found
    return found[0]


async def test_jobs_by_state_and_attempts_by_outcome(platform: Platform) -> None:
    with metrics_read() as read:
        crashed, failed, lost = [await claimed(platform) for _ in range(3)]
        async with platform.database.unit() as unit:
            await attempts.end_attempt(unit, crashed, Outcome.CRASHED, "signal 9", seconds=1)
            await attempts.end_job(unit, failed, {"code": "loss_diverged", "detail": "nan"}, seconds=1)
        async with platform.database.unit() as unit:
            await jobs.bury_attempt(unit, workspace="acme", job_id=lost.job_id, now=time.time() + 3600)
        assert read("lepton_training_attempts_total") == {("crashed",): 1, ("failed",): 1, ("lost",): 1}
        sampler = job_gauges(platform.database)
        await sampler.start()
        await sampler.look()
        shown = read("lepton_training_jobs")
        await sampler.stop()
    assert sum(shown.values()) == 3
    assert shown["failed",] == 1 and shown["succeeded",] == shown["running",] == 0
