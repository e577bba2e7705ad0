"""kill -9 of every kind of process at random moments: the same jobs, models, events, usage and invoices are there, once each."""

import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import leptonai as la
from tests.chaos.flow import ROWS, all_ended, check_once_each, submit
from tests.platform import Platform, eventually, running


@pytest.fixture
def platform(tmp_path: Path) -> Any:
    with running(tmp_path) as platform:
        with platform.http() as http:
            assert http.put("/v1/datasets/line/content", params={"filename": "line.csv"}, content=ROWS).status_code == 201
        yield platform
        platform.down()


@pytest.mark.parametrize("victim", ["standalone.worker", "services.training.engine"])
def test_a_killed_process_of_training_loses_and_doubles_nothing(platform: Platform, victim: str) -> None:
    chance = random.Random(victim)
    ids = [submit(platform, n, epochs=150) for n in range(3)]
    for _ in range(3):
        time.sleep(chance.uniform(0.5, 4))
        for process in platform.find(victim):
            try:
                process.kill()
            except psutil.Error:
                continue
    check_once_each(platform, ids)


def test_a_killed_platform_loses_and_doubles_nothing(platform: Platform) -> None:
    chance = random.Random(5)
    ids = []
    for n in range(4):
        ids.append(submit(platform, n, epochs=100))
        time.sleep(chance.uniform(0.1, 4))
        platform.kill()
        platform.up()
    check_once_each(platform, ids)


def test_a_killed_replica_comes_back_and_every_answered_row_is_billed_once(platform: Platform) -> None:
    submit(platform, 1, epochs=2)
    all_ended(platform)
    answered = 0
    with platform.client() as client:
        client.endpoints.create("line", "model-1@1")
        client.endpoints.wait_ready("line")
        for _ in range(3):
            for process in platform.find("services.deployment.replica"):
                process.kill()
            for _ in range(20):
                try:
                    answered += len(client.endpoints.predict("line", [{"x": 1.0}, {"x": 2.0}]))
                except la.LeptonError:
                    time.sleep(0.2)
        assert answered >= 60

        def billed() -> float:
            return sum(line.quantity for line in client.account.usage().lines if line.metric == "predictions")

        assert eventually(lambda: billed() == answered, timeout=20), (billed(), answered)


def test_training_goes_on_from_its_checkpoint(platform: Platform) -> None:
    id = submit(platform, 1, epochs=3000)

    def epoch() -> int:
        with platform.http() as http:
            return int((http.get(f"/v1/training-jobs/{id}").json().get("progress") or {}).get("epoch", 0))

    assert eventually(lambda: epoch() > 20, timeout=60)
    before = epoch()
    (engine,) = platform.find("services.training.engine")
    engine.kill()
    assert eventually(lambda: [p for p in platform.find("services.training.engine") if p.pid != engine.pid], timeout=30)
    assert eventually(lambda: epoch() >= before, timeout=60)
    with platform.http() as http:
        points = http.get(f"/v1/training-jobs/{id}/metrics", params={"name": "loss", "page_size": 10000}).json()["metrics"]
        epochs = [p["epoch"] for p in points]
        assert len(epochs) == len(set(epochs)), "an epoch was reported twice"
        started = time.monotonic()
        http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
    assert eventually(lambda: not platform.find("services.training.engine"), timeout=5, interval=0.05)
    assert time.monotonic() - started < 2.0
