"""An endpoint that sleeps, is woken by a request, and moves to another model under requests, none of which fails."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.platform import Platform, eventually

ROWS = "x,y\n" + "".join(f"{n},{2 * n + 1}\n" for n in range(60))
QUICK = {"canary_percents": [50, 100], "step_seconds": 2, "prove_seconds": 1}
RECORD = {"instances": [{"x": 3}]}


@pytest.fixture
def http(embedded_platform: Platform) -> Iterator[httpx.Client]:
    with embedded_platform.http() as http:
        yield http


def ok(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


def train(http: httpx.Client) -> str:
    """The model version "line@n"."""
    spec = {
        "name": "line",
        "dataset": "line@1",
        "task": "regression",
        "target": "y",
        "output_model": "line",
        "model": {"architecture": "linear"},
        "training": {"epochs": 2},
        "resources": {"accelerator": "cpu", "count": 1},
    }
    id = ok(http.post("/v1/training-jobs", json=spec))["id"]
    ended = eventually(lambda: _if(ok(http.get(f"/v1/training-jobs/{id}")), "succeeded", "failed"), 120)
    assert ended and ended["state"] == "succeeded", ended
    return str(ended["model_version"])


def _if(thing: dict[str, Any], *states: str) -> dict[str, Any] | None:
    return thing if thing["state"] in states else None


def test_sleep_wake_and_take_over(http: httpx.Client) -> None:
    ok(http.put("/v1/datasets/line/content", params={"filename": "line.csv"}, content=ROWS.encode()))
    first, second = train(http), train(http)
    scaling = {"min_replicas": 0, "max_replicas": 2, "idle_seconds": 1}
    ok(http.post("/v1/endpoints", json={"name": "line", "model": first, "scaling": scaling}))
    assert eventually(lambda: _if(ok(http.get("/v1/endpoints/line")), "ready"), 60)
    ok(http.post("/v1/endpoints/line/predict", json=RECORD))
    used = eventually(lambda: "replica_seconds" in {line["metric"] for line in ok(http.get("/v1/usage"))["lines"]}, 20)
    assert used, "the ready time of a replica is on the ledger while it runs"
    assert eventually(lambda: _if(ok(http.get("/v1/endpoints/line")), "sleeping"), 90)
    ok(http.post("/v1/endpoints/line/predict", json=RECORD))
    whys = [decision["why"] for decision in ok(http.get("/v1/endpoints/line/scaling"))["decisions"]]
    assert whys[:2] == ["a request waits for a replica", "nobody asked for 1 s"]

    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(http.post("/v1/endpoints/line/predict", json=RECORD).status_code)
            time.sleep(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        ok(http.patch("/v1/endpoints/line", json={"model": second, "rollout": QUICK}))

        def revisions() -> dict[int, dict[str, Any]]:
            return {each["number"]: each for each in ok(http.get("/v1/endpoints/line/revisions"))["revisions"]}

        assert eventually(lambda: revisions()[2]["requests"] and revisions()[2]["percent"] == 50, 60), revisions()
        assert eventually(lambda: revisions()[2]["state"] == "active", 60), revisions()
    finally:
        over.set()
        asking.join()
    assert len(answers) > 20 and set(answers) == {200}
    assert ok(http.get("/v1/endpoints/line"))["model"] == second
    assert http.delete("/v1/endpoints/line").is_success
