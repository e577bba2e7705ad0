"""Work that flows through a platform while something is broken, and what has to be true of it afterwards."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx

from tests.platform import Reachable, eventually

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


def submit(platform: Reachable, number: int, **options: Any) -> str:
    """Submits once, however often it has to be sent: the key makes it one."""

    refused = ""

    def send() -> str:
        nonlocal refused
        try:
            with platform.http() as http:
                answer = http.post("/v1/training-jobs", json=job(number, **options), headers={"Idempotency-Key": f"job-{number}"})
        except httpx.TransportError as error:
            refused = repr(error)
            return ""
        refused = f"{answer.status_code} {answer.text}"
        return str(answer.json()["id"]) if answer.status_code == 202 else ""

    id = eventually(send, timeout=150, interval=0.3)
    assert id, f"job {number}: {refused}"
    return str(id)


def jobs(platform: Reachable) -> list[dict[str, Any]]:
    with platform.http() as http:
        return list(http.get("/v1/training-jobs", params={"page_size": 1000}).raise_for_status().json()["training_jobs"])


def all_ended(platform: Reachable, timeout: float = 240) -> list[dict[str, Any]]:
    def check() -> list[dict[str, Any]]:
        try:
            found = jobs(platform)
        except httpx.HTTPError:
            return []
        return found if found and all(j["state"] in ENDED for j in found) else []

    found = eventually(check, timeout, interval=0.5)
    assert found, [(j["name"], j["state"], j["reason"]) for j in jobs(platform)]
    return list(found)


def check_once_each(platform: Reachable, ids: list[str]) -> None:
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
        seconds = sum(a["workers"] * _seconds(a) for a in allocations if a["grant_time"] and a["holder"].startswith("training-jobs/"))

        def billed() -> float:
            lines = http.get("/v1/usage").json()["lines"]
            return float(sum(line["quantity"] for line in lines if line["metric"] == "cpu_seconds" and "training" in line["resource"]))

        assert eventually(lambda: abs(billed() - seconds) < 0.01 * max(seconds, 1) + 0.1, timeout=30), (billed(), seconds)


def _seconds(allocation: dict[str, Any]) -> float:
    """What is billed of it: to its release, or to its last renewal."""

    def at(name: str) -> datetime:
        return datetime.fromisoformat(allocation[name])

    if allocation["state"] == "released":
        return (at("end_time") - at("grant_time")).total_seconds()
    return (at("lease_expire_time") - timedelta(seconds=30) - at("grant_time")).total_seconds()


class Flow:
    """Datasets and short jobs that one workspace sends, one after another in a thread, until all are accepted."""

    def __init__(self, platform: Reachable, items: int, *, epochs: int = 3, pause: float = 0.0) -> None:
        self._platform, self._items, self._epochs, self._pause = platform, items, epochs, pause
        self.jobs: list[str] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)

    def start(self) -> "Flow":
        """The dataset that all jobs read is there first."""
        upload(self._platform, "line")
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def check(self, timeout: float) -> None:
        """Everything that was accepted has happened once, and is on the invoice to the cent."""
        self._thread.join(timeout)
        assert not self.running, f"{len(self.jobs)} of {self._items} jobs were accepted in time; last: {self.failures[-3:]}"
        assert len(self.jobs) == self._items, self.failures[-3:]
        all_ended(self._platform, timeout)
        check_once_each(self._platform, self.jobs)
        with self._platform.http() as http:
            names = [f"line-{number}" for number in range(self._items)]
            for name in names:
                versions = http.get(f"/v1/datasets/{name}/versions").json()["versions"]
                assert [(v["number"], v["state"], v["rows"]) for v in versions] == [(1, "ready", 200)], (name, versions)
        check_invoice(self._platform)

    def _run(self) -> None:
        try:
            for number in range(self._items):
                upload(self._platform, f"line-{number}")
                self.jobs.append(submit(self._platform, number, epochs=self._epochs))
                time.sleep(self._pause)
        except Exception as error:
            self.failures.append(repr(error))


def upload(platform: Reachable, name: str) -> None:
    """Sends it until it is a version: the key makes it one."""

    refused = ""

    def send() -> bool:
        nonlocal refused
        try:
            with platform.http() as http:
                path, key = f"/v1/datasets/{name}/content", {"Idempotency-Key": f"upload-{name}"}
                answer = http.put(path, params={"filename": "line.csv"}, content=ROWS, headers=key)
        except httpx.TransportError as error:
            refused = repr(error)
            return False
        refused = f"{answer.status_code} {answer.text}"
        assert answer.status_code in (201, 202, 409, 429) or answer.status_code >= 500, refused
        return answer.status_code in (201, 202)

    assert eventually(send, timeout=150, interval=0.5), f"{name}: {refused}"


def check_invoice(platform: Reachable) -> None:
    """What the workspace pays for training is what its allocations took, at the plan's price, to the cent."""
    with platform.http() as http:
        allocations = http.get("/v1/compute/allocations", params={"page_size": 1000}).json()["allocations"]
        seconds = sum(a["workers"] * _seconds(a) for a in allocations if a["grant_time"])
        invoice = http.post("/v1/invoices", json={})
        assert invoice.status_code == 201, invoice.text
        lines = [line for line in invoice.json()["lines"] if line["metric"] == "cpu_seconds"]
        assert lines, invoice.text
        expected = (
            sum(line["unit_price"]["micros"] * line["quantity"] for line in lines) / sum(line["quantity"] for line in lines) * seconds
        )
        assert abs(sum(line["amount"]["micros"] for line in lines) - expected) < 10_000, (invoice.text, seconds)


@contextmanager
def asking(platform: Reachable) -> Iterator[tuple[list[str], list[float]]]:
    """A client that reads, writes and predicts all the time: what failed, and how long each request took."""
    failed: list[str] = []
    seconds: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with platform.http() as http:

            def send(method: str, path: str, body: Any = None) -> dict[str, Any]:
                began = time.monotonic()
                try:
                    answer = http.request(method, path, json=body)
                    if answer.status_code < 400:
                        return dict(answer.json() or {})
                    failed.append(f"{method} {path} after {time.monotonic() - began:.2f} s: {answer.status_code} {answer.text[:400]}")
                except httpx.TransportError as error:
                    failed.append(f"{method} {path} after {time.monotonic() - began:.2f} s: {error!r}")
                finally:
                    seconds.append(time.monotonic() - began)
                return {}

            for number in itertools.count():
                if ended.is_set():
                    return
                send("GET", "/v1/training-jobs")
                key = send("POST", "/v1/api-keys", {"name": f"key-{number}", "role": "viewer"})
                send("GET", "/v1/datasets")
                send("POST", "/v1/endpoints/line/predict", {"instances": [{"x": 1.0}]})
                send("GET", "/v1/listings")
                if key:
                    send("DELETE", f"/v1/api-keys/{key['api_key']['id']}")
                send("GET", "/v1/compute/allocations")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield failed, seconds
    finally:
        ended.set()
        thread.join(90)
