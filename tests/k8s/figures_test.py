"""What docs/kubernetes.md says under Measured of the platform's own part: how soon the cluster hears of a request, and what waiting costs.

`pytest -s` prints the figures.
"""

import json
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.flow import ENDED, jobs, submit, upload
from tests.cluster import SERVICES, Cluster, kubectl
from tests.k8s.runs_test import ended, submitted
from tests.platform import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TIMES = 5
HEARD_SECONDS = 0.5
# The first take all the room that there is.
ENDLESS = 100_000
# A workspace may have 100 jobs under way.
WAITING_JOBS, TENANTS = 500, 5
# The aim is 0.2; see docs/kubernetes.md.
WAITING_CORES, LOOKED_SECONDS = 0.6, 60.0


class Made:
    """When the cluster made which objects."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def note(self, name: str) -> None:
        self._seen.setdefault(name, time.monotonic())

    def took(self, act: Callable[[], object]) -> float:
        """Seconds from before `act` until something new was made."""
        before, began = set(self._seen), time.monotonic()
        act()
        new = eventually(lambda: [at for name, at in dict(self._seen).items() if name not in before], timeout=60, interval=0.01)
        assert new, "nothing was made"
        return float(min(new) - began)


@contextmanager
def watched(platform: Cluster, kind: str, role: str) -> Iterator[Made]:
    """Objects of that kind, as the cluster makes them."""
    words = ("get", kind, "--selector", f"app.kubernetes.io/managed-by=lepton,lepton.dev/role={role}", "--watch", "--output", "name")
    made = Made()
    with subprocess.Popen(["kubectl", "--namespace", platform.namespace, *words], stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        lines = watch.stdout
        reader = threading.Thread(target=lambda: [made.note(line.strip()) for line in lines], daemon=True)
        reader.start()
        time.sleep(2)  # for the watch to begin
        try:
            yield made
        finally:
            watch.terminate()
            reader.join(10)


def core_seconds(platform: Cluster) -> float:
    """What the platform's own pods have used of a core so far."""
    node = platform.get("pods", "--selector", "app.kubernetes.io/name=gateway")[0]["spec"]["nodeName"]
    pods = json.loads(kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary"))["pods"]
    mine = {name for service in SERVICES for name in platform.pods(service)}
    found = [pod["cpu"]["usageCoreNanoSeconds"] for pod in pods if pod["podRef"]["name"] in mine]
    assert len(found) == len(mine)
    return float(sum(found)) / 1e9


def test_a_submitted_job_is_a_job_of_the_cluster_at_once(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("prompt")
    upload(tenant, "line")
    ended(tenant, submitted(tenant, 0, training={"epochs": 3}))
    took = []
    with watched(cluster_platform, "jobs", "run") as made:
        for number in range(1, TIMES + 1):
            ids: list[str] = []
            took.append(made.took(lambda number=number, ids=ids: ids.append(submitted(tenant, number, training={"epochs": 3}))))
            ended(tenant, ids[0])
    print(f"\nsubmit to Job: {[round(seconds, 2) for seconds in took]}")
    assert statistics.median(took) <= HEARD_SECONDS, took


def test_a_changed_endpoint_is_a_pod_of_the_cluster_at_once(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("changed")
    upload(tenant, "line")
    ended(tenant, submitted(tenant, training={"epochs": 3}))
    took = []
    with tenant.http() as http, watched(cluster_platform, "pods", "replica") as made:
        http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1", "replicas": 0}).raise_for_status()
        for _ in range(TIMES):
            for replicas in (1, 0):

                def change(replicas: int = replicas) -> None:
                    http.patch("/v1/endpoints/line", json={"replicas": replicas}).raise_for_status()

                took.append(made.took(change)) if replicas else change()
                wanted = replicas
                assert eventually(lambda wanted=wanted: http.get("/v1/endpoints/line").json()["ready_replicas"] == wanted, timeout=60)
            time.sleep(2)  # for its room to be given back
        http.delete("/v1/endpoints/line").raise_for_status()
    print(f"\nendpoint change to pod: {[round(seconds, 2) for seconds in took]}")
    assert statistics.median(took) <= HEARD_SECONDS, took


def test_hundreds_of_waiting_jobs_cost_little(cluster_platform: Cluster) -> None:
    tenants = [cluster_platform.workspace(f"waiting-{number}") for number in range(TENANTS)]
    try:
        began = time.monotonic()
        for tenant in tenants:
            upload(tenant, "line")
            for number in range(WAITING_JOBS // TENANTS):
                submit(tenant, number, epochs=ENDLESS)
        sent = time.monotonic() - began
        time.sleep(15)  # for what sending them left to do
        before, at = core_seconds(cluster_platform), time.monotonic()
        time.sleep(LOOKED_SECONDS)
        cores = (core_seconds(cluster_platform) - before) / (time.monotonic() - at)
        states = Counter(each["state"] for tenant in tenants for each in jobs(tenant))
    finally:
        for tenant in tenants:
            _cancel_all(tenant)
    print(f"\n{WAITING_JOBS} sent in {sent:.0f} s; with them {cores:.3f} cores; {dict(states)}")
    assert states["queued"] + states["running"] == WAITING_JOBS
    assert states["queued"] >= 0.9 * WAITING_JOBS
    assert cores <= WAITING_CORES


def _cancel_all(tenant: Cluster) -> None:
    with tenant.http() as http:
        for each in jobs(tenant):
            if each["state"] not in ENDED:
                http.post(f"/v1/training-jobs/{each['id']}/cancel", json={})
