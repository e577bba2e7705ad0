"""The endpoint "line" of a platform: two versions of one model behind it, changed and looked at as a client does."""

from typing import Any

import psutil

from tests.chaos.flow import job, upload
from tests.platform import Reachable, eventually

AT_ONCE = {"canary_percents": [100], "step_seconds": 0, "prove_seconds": 0}


def deploy(platform: Reachable) -> None:
    """Two replicas of the first version."""
    upload(platform, "line")
    with platform.http() as http:
        for number in (1, 2):
            made = http.post("/v1/training-jobs", json={**job(number, epochs=2), "output_model": "line"})
            assert made.status_code == 202, made.text
            path = f"/v1/training-jobs/{made.json()['id']}"
            assert eventually(lambda path=path: http.get(path).json()["state"] == "succeeded", timeout=120)
        http.post("/v1/endpoints", json={"name": "line", "model": "line@1", "replicas": 2}).raise_for_status()
    assert eventually(lambda: ready(platform) == 2, timeout=60)


def ready(platform: Reachable) -> int:
    with platform.http() as http:
        return int(http.get("/v1/endpoints/line").json()["ready_replicas"])


def change(platform: Reachable, **wish: Any) -> None:
    with platform.http() as http:
        answer = http.patch("/v1/endpoints/line", json=wish)
        assert answer.status_code == 200, answer.text


def settled(platform: Reachable, replicas: int, model: str) -> bool:
    with platform.http() as http:
        found = http.get("/v1/endpoints/line").json()
        return (found["ready_replicas"], found["model"], found["state"]) == (replicas, model, "ready")


def replicas(platform: Reachable) -> list[psutil.Process]:
    return platform.find("services.deployment.replica")


def predicted(platform: Reachable) -> float:
    """Rows that the workspace is billed."""
    with platform.http() as http:
        return float(sum(line["quantity"] for line in http.get("/v1/usage").json()["lines"] if line["metric"] == "predictions"))
