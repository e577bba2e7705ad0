"""Pods that go while work flows, and versions that come: nothing is lost, nothing happens twice, and with two of each no request fails."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.chaos.flow import Flow, asking
from tests.cluster import SERVICES, Cluster
from tests.composed import ROOT
from tests.platform import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ITEMS = 6


def serving(tenant: Cluster, replicas: int) -> None:
    """An endpoint `line` of a model that the flow has trained."""
    with tenant.http() as http:
        assert eventually(lambda: http.get("/v1/models/model-0/versions/1").status_code == 200, timeout=120), tenant.log()
        http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1", "replicas": replicas}).raise_for_status()
        assert eventually(lambda: http.get("/v1/endpoints/line").json()["state"] == "ready", timeout=120), tenant.log()


def test_a_pod_of_each_service_deleted_during_jobs_and_predictions(cluster_platform: Cluster) -> None:
    tenant = cluster_platform.workspace(f"deleted-{time.time():.0f}")
    flow = Flow(tenant, ITEMS, pause=4).start()
    serving(tenant, 1)
    for service in SERVICES:
        for pod in cluster_platform.pods(service):
            cluster_platform.kubectl("delete", "pod", pod, "--wait=false", "--grace-period", "0", "--force")
        time.sleep(3)
    for service in SERVICES:
        cluster_platform.rolled_out(service)
    flow.check(timeout=60 + 20 * ITEMS)
    with tenant.http() as http:
        answer = eventually(lambda: http.post("/v1/endpoints/line/predict", json={"instances": [{"x": 0.5}]}).status_code == 200, 60)
        assert answer


@pytest.fixture
def pairs(cluster_platform: Cluster) -> Iterator[Cluster]:
    """Two of everything that is the platform's own, and a second version of its images in the cluster."""
    # The control plane is of the gateway's image and the runner of training's; what that runs is of the worker's.
    named = [f"lepton/{service}" for service in SERVICES if service not in ("control", "data-worker", "runner")] + ["lepton/worker"]
    for image in named:
        subprocess.run(["docker", "tag", f"{image}:dev", f"{image}:next"], check=True, timeout=60)
        subprocess.run([ROOT / "tools" / "cluster" / "load.sh", f"{image}:next"], check=True, timeout=600)
    _scale(cluster_platform, 2)
    yield cluster_platform
    _scale(cluster_platform, 1)
    subprocess.run(["docker", "rmi", *(f"{image}:next" for image in named)], check=True, capture_output=True, timeout=60)


def _scale(platform: Cluster, replicas: int) -> None:
    for service in SERVICES:
        platform.kubectl("scale", platform.workload(service), "--replicas", str(replicas))
    for service in SERVICES:
        platform.rolled_out(service)


def images(platform: Cluster) -> set[str]:
    """The versions that run."""
    found = platform.get("pods", "--selector", "app.kubernetes.io/part-of=lepton")
    return {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def test_the_next_version_and_back_again_fail_no_request_and_lose_no_job(pairs: Cluster) -> None:
    tenant = pairs.workspace("upgraded")
    flow = Flow(tenant, ITEMS, pause=5).start()
    serving(tenant, 2)
    with asking(tenant) as (failed, seconds):
        pairs.up(LEPTON_VERSION="next")
        assert images(pairs) == {"next"}
        for service in SERVICES:
            pairs.kubectl("rollout", "undo", pairs.workload(service))
        for service in SERVICES:
            pairs.rolled_out(service)
        assert images(pairs) == {"dev"}
    assert not failed, (len(failed), len(seconds), failed[:5])
    assert len(seconds) > 50
    flow.check(timeout=60 + 20 * ITEMS)
    print(f"{len(seconds)} requests, none failed; slowest {max(seconds):.2f} s")
