"""Predictions go on while the services behind the gateway are away, and the control plane has nothing to do with them."""

import asyncio
import time

import pytest

from libs.errors import Transient
from services.gateway.conftest import World
from services.gateway.inference.predictions_test import PATH, ROWS, told
from services.gateway.inference.quota import PredictionQuota
from services.gateway.transcode_test import check_problem


async def test_predictions_go_on_without_accounts_and_deployment(world: World) -> None:
    await world.add_replica()
    world.behind.accounts.left = 1000
    assert (await world.client.post(PATH, json=ROWS)).status_code == 200
    await world.services.stop(0)
    slowest = 0.0
    for _ in range(80):
        began = time.monotonic()
        response = await world.client.post(PATH, json=ROWS)
        assert response.status_code == 200, response.text
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.05)
    assert slowest < 2
    check_problem(await world.client.post(PATH, json=ROWS, headers={"authorization": "Bearer viewer-key"}), 503, "unavailable")
    await world.start_services()
    await told(world, 162)
    recorded = [record.rows for batch in world.behind.deployment.batches.values() for record in batch.records]
    assert sum(recorded) == 162


async def test_predictions_go_on_without_the_control_plane(world: World) -> None:
    await world.add_replica()
    await world.control.stop()
    assert (await world.client.post(PATH, json=ROWS)).status_code == 200
    assert (await world.client.get("/healthz")).status_code == 200
    problem = check_problem(await world.client.get("/v1/datasets"), 503, "unavailable")
    assert "control plane" in problem["detail"]


async def test_trust_in_quota_has_an_end() -> None:
    class Away:
        async def ReserveQuota(self, request: object) -> object:
            raise Transient("away")

    now = 0.0
    quota = PredictionQuota(Away(), "g", 10, clock=lambda: now)
    await quota.admit("acme")
    for _ in range(5):
        await quota.take("acme", 10)
    now = 400.0
    with pytest.raises(Transient, match="how many predictions are left"):
        await quota.take("acme", 10)
    await quota.stop()


async def test_what_goes_through_is_reported(world: World) -> None:
    replica = await world.add_replica()
    replica.pause = 0.3
    await asyncio.gather(*(world.client.post(PATH, json=ROWS) for _ in range(6)))
    reports = world.behind.deployment.reports
    async with asyncio.timeout(10):
        while sum(report.requests for report in reports) < 6:  # noqa: ASYNC110 (another task makes it so)
            await asyncio.sleep(0.05)
    assert {(report.workspace, report.endpoint) for report in reports} == {("acme", "wdbc")}
    assert max(report.p95_seconds for report in reports) >= 0.3
    assert 0 < max(report.in_flight for report in reports) <= 6
    await asyncio.sleep(2.5)
    assert reports[-1].requests == 0
