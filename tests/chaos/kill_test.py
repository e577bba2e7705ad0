"""kill -9 of every kind of process at random moments: the same jobs, models, events, usage and invoices are there, once each."""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import leptonai as la
from tests.platform import Platform, eventually, running

ROWS = "x,y\n" + "".join(f"{n / 50},{n / 25 + 1}\n" for n in range(200))
ENDED = ("succeeded", "failed", "cancelled")


def job(number: int, epochs: int = 40) -> dict[str, Any]:
    return {
        "name": f"job-{number}",
        "dataset": "line@1",
        "task": "regression",
        "target": "y",
        "output_model": f"model-{number}",
        "model": {"architecture": "mlp", "params": {"hidden": [8]}},
        "training": {"epochs": epochs, "batch_size": 4, "seed": number},
    }


def submit(platform: Platform, number: int, **options: Any) -> str:
    """Submits once, however often it has to be sent: the key makes it one."""

    def send() -> str:
        try:
            with platform.http() as http:
                answer = http.post("/v1/training-jobs", json=job(number, **options), headers={"Idempotency-Key": f"job-{number}"})
                return str(answer.json()["id"]) if answer.status_code == 202 else ""
        except httpx.TransportError:
            return ""

    id = eventually(send, timeout=60, interval=0.3)
    assert id
    return str(id)


def jobs(platform: Platform) -> list[dict[str, Any]]:
    with platform.http() as http:
        return list(http.get("/v1/training-jobs", params={"page_size": 1000}).json()["training_jobs"])


def all_ended(platform: Platform, timeout: float = 240) -> list[dict[str, Any]]:
    def check() -> list[dict[str, Any]]:
        try:
            found = jobs(platform)
        except (httpx.TransportError, KeyError):
            return []
        return found if found and all(j["state"] in ENDED for j in found) else []

    found = eventually(check, timeout, interval=0.5)
    assert found, [(j["name"], j["state"], j["reason"]) for j in jobs(platform)]
    return list(found)


def check_once_each(platform: Platform, ids: list[str]) -> None:
    """One job an accepted request, one model version a job, usage for each, and no allocation that nobody holds."""
    found = all_ended(platform)
    assert Counter(j["id"] for j in found) == Counter(ids)
    assert all(j["state"] == "succeeded" for j in found), [(j["name"], j["state"], j.get("error")) for j in found]
    with platform.http() as http:
        for j in found:
            versions = http.get(f"/v1/models/{j['output_model']}/versions").json()["model_versions"]
            assert [v["number"] for v in versions] == [1]
            assert versions[0]["training_job"] == j["id"]

        def released() -> bool:
            allocations = http.get("/v1/compute/allocations", params={"page_size": 1000}).json()["allocations"]
            return all(a["state"] in ("released", "expired") for a in allocations if a["holder"].startswith("training-jobs/"))

        assert eventually(released, timeout=60)
        allocations = http.get("/v1/compute/allocations", params={"page_size": 1000}).json()["allocations"]
        seconds = sum(_seconds(a) for a in allocations if a["grant_time"] and a["holder"].startswith("training-jobs/"))

        def billed() -> float:
            lines = http.get("/v1/usage").json()["lines"]
            return float(sum(line["quantity"] for line in lines if line["metric"] == "cpu_seconds" and "training" in line["resource"]))

        assert eventually(lambda: abs(billed() - seconds) < 0.01 * max(seconds, 1) + 0.1, timeout=30), (billed(), seconds)


def _seconds(allocation: dict[str, Any]) -> float:
    """What is billed of it: to its release, or to its last renewal."""
    from datetime import datetime, timedelta

    def at(name: str) -> datetime:
        return datetime.fromisoformat(allocation[name])

    if allocation["state"] == "released":
        return (at("end_time") - at("grant_time")).total_seconds()
    return (at("lease_expire_time") - timedelta(seconds=30) - at("grant_time")).total_seconds()


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
