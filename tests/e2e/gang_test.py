"""A job of two workers on `lepton up`: the model of one, billed as two, and whole again after kill -9 of either."""

from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.flow import ROWS, check_once_each, job
from tests.platform import Platform, eventually

ENGINE = "services.training.engine"


@pytest.fixture(scope="module")
def http(embedded_platform: Platform) -> Any:
    with embedded_platform.http() as http:
        assert http.put("/v1/datasets/line/content", params={"filename": "line.csv"}, content=ROWS).status_code == 201
        (node,) = http.get("/v1/compute/nodes").json()["nodes"]
        if node["cpu_millis"] < 2000:
            pytest.skip("two workers want two cores")
        yield http


def submitted(http: httpx.Client, number: int, **training: Any) -> str:
    wanted = job(number)
    answer = http.post("/v1/training-jobs", json={**wanted, "training": {**wanted["training"], **training}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(http: httpx.Client, id: str) -> dict[str, Any]:
    def check() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(f"/v1/training-jobs/{id}").json()
        return found if found["state"] in ("succeeded", "failed", "cancelled") else None

    found = eventually(check, timeout=180, interval=0.3)
    assert found, http.get(f"/v1/training-jobs/{id}").text
    return dict(found)


def losses(http: httpx.Client, id: str) -> list[float]:
    points = http.get(f"/v1/training-jobs/{id}/metrics", params={"name": "loss", "page_size": 1000}).json()["metrics"]
    return [point["value"] for point in points]


def workers(platform: Platform) -> list[psutil.Process]:
    return [process for process in platform.find(ENGINE) if "RANK" in process.environ()]


def test_two_workers_learn_what_one_learns_and_are_billed_as_two(embedded_platform: Platform, http: httpx.Client) -> None:
    ids = [submitted(http, 10, seed=1, workers=1), submitted(http, 11, seed=1, workers=2)]
    jobs = [ended(http, id) for id in ids]
    assert [found["state"] for found in jobs] == ["succeeded", "succeeded"], jobs
    assert losses(http, ids[1]) == pytest.approx(losses(http, ids[0]), rel=1e-4, abs=1e-6)
    held = [a for a in http.get("/v1/compute/allocations").json()["allocations"] if ids[1] in a["holder"]]
    assert [a["workers"] for a in held] == [2]
    check_once_each(embedded_platform, ids)


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_worker_costs_an_attempt_and_no_more(embedded_platform: Platform, http: httpx.Client, which: int) -> None:
    id = submitted(http, 20 + which, epochs=150, workers=2)

    def epoch() -> int:
        return int((http.get(f"/v1/training-jobs/{id}").json().get("progress") or {}).get("epoch") or 0)

    assert eventually(lambda: epoch() > 5, timeout=120), http.get(f"/v1/training-jobs/{id}").text
    (victim,) = [process for process in workers(embedded_platform) if process.environ()["RANK"] == str(which)]
    victim.kill()
    found = ended(http, id)
    assert (found["state"], found["attempts"]) == ("succeeded", 2), found
    logs = http.get(f"/v1/training-jobs/{id}/logs", params={"page_size": 1000}).json()["logs"]
    assert any(f"worker {which} ended first, with signal 9" in line["text"] for line in logs), logs
    assert any(line["text"].startswith("resumed after epoch") for line in logs)
    assert len(losses(http, id)) == 150
    assert not workers(embedded_platform)


def test_nothing_of_a_cancelled_gang_is_left(embedded_platform: Platform, http: httpx.Client) -> None:
    id = submitted(http, 30, epochs=100_000, workers=2)
    assert eventually(lambda: http.get(f"/v1/training-jobs/{id}").json()["state"] == "running", timeout=120)
    assert len(workers(embedded_platform)) == 2
    http.post(f"/v1/training-jobs/{id}/cancel", json={}).raise_for_status()
    assert ended(http, id)["state"] == "cancelled"
    assert eventually(lambda: not workers(embedded_platform), timeout=10)


@pytest.mark.parametrize(
    ("training", "field", "words"),
    [
        ({"workers": 0}, "training.workers", "1"),
        ({"workers": 65}, "training.workers", "64"),
        ({"workers": -1}, "training.workers", ""),
        ({"workers": 64, "batch_size": 64}, "training.workers", "64 workers cannot be had at once"),
        ({"workers": 64, "batch_size": 32}, "training.workers", "batches of 32 rows"),
        ({"workers": 2, "optimizer": "lbfgs"}, "training.optimizer", "use adamw"),
        ({"workers": 2, "batch_size": 1}, "training.workers", "batches of 1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(http: httpx.Client, training: dict[str, Any], field: str, words: str) -> None:
    answer = http.post("/v1/training-jobs", json={**job(40), "training": {"epochs": 2, **training}})
    assert answer.status_code in (400, 422), answer.text
    assert any(error["field"] == field and words in error["message"] for error in answer.json()["errors"]), answer.text
