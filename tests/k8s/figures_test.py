"""What docs/kubernetes.md says under Measured of the platform's own part: how soon the cluster hears of a request, and what waiting costs.

`pytest -s` prints the figures.
"""

import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial

import httpx
import pytest

from tests.chaos.flow import ENDED, jobs, submit, upload
from tests.cluster import SERVICES, Cluster, kubectl
from tests.k8s.runs_test import ended, submitted
from tests.platform import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TIMES = 5
HEARD_SECONDS = 0.5
# A workspace may have 100 jobs under way.
# The figure of docs/kubernetes.md is that of 500; fewer show in less time that their number does not make the platform busy.
WAITING_JOBS, TENANTS = int(os.environ.get("LEPTON_WAITING_JOBS", "40")), 5
WAITING_CORES, LOOKED_SECONDS = 0.2, 30.0
# Of short ones, which are begun and end most often.
DRAINING_CORES = 0.4


class Made:
    """When the cluster made which objects."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def note_all(self, names: Iterable[str]) -> None:
        """Each with the time at which it came."""
        for name in names:
            self._seen.setdefault(name.strip(), time.monotonic())

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
        reader = threading.Thread(target=made.note_all, args=(watch.stdout,), daemon=True)
        reader.start()
        time.sleep(2)  # for the watch to begin
        try:
            yield made
        finally:
            watch.terminate()
            reader.join(10)


def used(platform: Cluster) -> dict[str, tuple[float, float]]:
    """What each of the platform's own pods has used of a core so far, and when the kubelet looked."""
    pods = [pod for service in SERVICES for pod in platform.get("pods", "--selector", f"app.kubernetes.io/name={service}")]
    # By uid: a pod of the same name may stand in another namespace, or have stood here.
    mine = {pod["metadata"]["uid"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    summary = json.loads(kubectl("get", "--raw", f"/api/v1/nodes/{pods[0]['spec']['nodeName']}/proxy/stats/summary"))
    found = {pod["podRef"]["uid"]: pod for pod in summary["pods"] if pod["podRef"]["uid"] in mine}
    assert len(found) == len(SERVICES), sorted(pod["podRef"]["name"] for pod in found.values())
    return {
        pod["podRef"]["name"]: (pod["cpu"]["usageCoreNanoSeconds"] / 1e9, datetime.fromisoformat(pod["cpu"]["time"]).timestamp())
        for pod in found.values()
    }


def cores(platform: Cluster, seconds: float) -> dict[str, float]:
    """What each of them uses of a core during `seconds`, by the kubelet's own clock: it looks at each every 10 s or so."""
    before = used(platform)
    time.sleep(seconds)
    after = used(platform)
    assert after.keys() == before.keys()
    return {name: (after[name][0] - before[name][0]) / (after[name][1] - before[name][1]) for name in after}


def test_a_submitted_job_is_a_job_of_the_cluster_at_once(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace("prompt")
    upload(tenant, "line")
    ended(tenant, submitted(tenant, 0, training={"epochs": 3}))
    took = []
    with watched(cluster_platform, "jobs", "run") as made:
        for number in range(1, TIMES + 1):
            send = cache(partial(submitted, tenant, number, training={"epochs": 3}))
            took.append(made.took(send))
            ended(tenant, send())
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


def test_jobs_that_wait_and_a_queue_that_drains_cost_little(cluster_platform: Cluster) -> None:
    idle = cores(cluster_platform, LOOKED_SECONDS)
    tenants = [cluster_platform.workspace(f"waiting-{number}") for number in range(TENANTS)]
    try:
        with cordoned(cluster_platform):
            began = time.monotonic()
            with ThreadPoolExecutor(TENANTS) as side_by_side:  # its end is that of all who send
                list(side_by_side.map(_submit_all, tenants))
            sent = time.monotonic() - began
            time.sleep(15)  # for what sending them left to do
            waiting = cores(cluster_platform, LOOKED_SECONDS)
            assert _states(tenants) == {"queued": WAITING_JOBS}
        time.sleep(5)
        before = _states(tenants)["succeeded"]
        draining = cores(cluster_platform, LOOKED_SECONDS)
        ended = _states(tenants)["succeeded"] - before
        print(f"\n{WAITING_JOBS} sent in {sent:.0f} s. Cores: {sum(idle.values()):.3f} idle, {sum(waiting.values()):.3f} while they wait")
        print(f"{sum(draining.values()):.3f} while {ended} run and end in {LOOKED_SECONDS:g} s")
        for name in sorted(draining, key=draining.__getitem__, reverse=True):
            print(f"{name}: {idle.get(name, 0):.3f}, {waiting.get(name, 0):.3f}, {draining[name]:.3f}")
    finally:
        with ThreadPoolExecutor(TENANTS) as side_by_side:
            list(side_by_side.map(_cancel_all, tenants))
    assert ended
    assert sum(waiting.values()) <= WAITING_CORES, waiting
    assert sum(draining.values()) <= DRAINING_CORES, draining


@contextmanager
def cordoned(platform: Cluster) -> Iterator[None]:
    """Its nodes take nothing new meanwhile."""

    def change(state: str) -> None:
        with platform.http() as http:
            for node in http.get("/v1/compute/nodes").raise_for_status().json()["nodes"]:
                http.patch(f"/v1/compute/nodes/{node['name']}", json={"state": state}).raise_for_status()

    change("cordoned")
    try:
        yield
    finally:
        change("ready")


def _states(tenants: list[Cluster]) -> Counter[str]:
    return Counter(each["state"] for tenant in tenants for each in jobs(tenant))


def _submit_all(tenant: Cluster) -> None:
    upload(tenant, "line")
    for number in range(WAITING_JOBS // TENANTS):
        submit(tenant, number, epochs=3)


def _cancel_all(tenant: Cluster) -> None:
    """Until none is left: they would hold the room of the tests that follow."""

    def cancelled() -> bool:
        try:
            left = [each for each in jobs(tenant) if each["state"] not in ENDED]
            with tenant.http() as http:
                for each in left:
                    http.post(f"/v1/training-jobs/{each['id']}/cancel", json={})
        except httpx.HTTPError:
            return False
        return not left

    assert eventually(cancelled, timeout=300, interval=1)
