"""What docs/kubernetes.md promises of the platform on a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.flow import Flow
from tests.cluster import SERVICES, Cluster
from tests.platform import LEPTON, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Everything of the platform at rest, without what it stands on.
REST_BYTES = 1.5 * 2**30


def test_the_demonstration_runs_against_it(cluster_platform: Cluster) -> None:
    environment = {**cluster_platform.env, "PATH": str(Path(sys.executable).parent)}
    words = [LEPTON, "demo", "--url", cluster_platform.url]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + cluster_platform.log()
    assert done.stdout.count("✓") == 2


def test_work_is_done_once_and_billed_to_the_cent(cluster_platform: Cluster) -> None:
    Flow(cluster_platform.workspace("flow"), 3).start().check(timeout=180)


def test_applying_it_again_changes_nothing(cluster_platform: Cluster) -> None:
    def uids() -> set[str]:
        return {pod["metadata"]["uid"] for pod in cluster_platform.get("pods", "--selector", "app.kubernetes.io/managed-by!=lepton")}

    before = uids()
    key = cluster_platform.key
    again = cluster_platform.up()
    assert again.key == key
    assert uids() == before


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_is_confined(cluster_platform: Cluster, service: str) -> None:
    (pod,) = cluster_platform.pods(service)
    assert cluster_platform.kubectl("exec", pod, "--", "id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only"):
        cluster_platform.kubectl("exec", pod, "--", "touch", "/app/here")
    if service != "runner":
        with pytest.raises(AssertionError, match="No such file"):
            cluster_platform.kubectl("exec", pod, "--", "ls", "/var/run/secrets/kubernetes.io")


def test_a_service_knows_its_own_secrets_alone(cluster_platform: Cluster) -> None:
    for service in ("accounts", "compute", "marketplace"):
        (pod,) = cluster_platform.pods(service)
        names = {line.partition("=")[0] for line in cluster_platform.kubectl("exec", pod, "--", "env").splitlines()}
        mine = f"LEPTON_{service.upper()}_"
        secret = {name for name in names if name.endswith(("PRIVATE_KEY", "DATABASE__PASSWORD", "BOOTSTRAP_KEY"))}
        assert secret, service
        assert all(name.startswith(mine) for name in secret), secret


def test_prometheus_reads_every_process(cluster_platform: Cluster) -> None:
    query = "wget -qO- 'http://127.0.0.1:9090/api/v1/query?query=up==1'"

    def missing() -> set[str]:
        found = json.loads(cluster_platform.kubectl("exec", "deployment/prometheus", "--", "sh", "-c", query))
        return set(SERVICES) - {each["metric"]["process"] for each in found["data"]["result"]}

    assert eventually(lambda: not missing(), timeout=90), missing()


def test_a_trace_crosses_processes(cluster_platform: Cluster) -> None:
    with cluster_platform.workspace("traced").http() as http:
        answer = http.put("/v1/datasets/t/content", params={"filename": "t.csv"}, content="a,b\n1,2\n")
        trace = answer.headers["x-lepton-trace-id"]

        def services() -> set[str]:
            found = http.get(f"/v1/traces/{trace}")
            return {span["service"] for span in found.json()["spans"]} if found.status_code == 200 else set()

        assert eventually(lambda: {"gateway", "data"} <= services(), timeout=30), services()


def test_its_memory_at_rest(cluster_platform: Cluster) -> None:
    def used() -> int:
        lines = cluster_platform.kubectl("top", "pods", "--no-headers", "--selector", "app.kubernetes.io/part-of=lepton", check=False)
        figures = [line.split()[2] for line in lines.splitlines()]
        assert all(figure.endswith("Mi") for figure in figures), figures
        return sum(int(figure[:-2]) for figure in figures) * 2**20 if len(figures) == len(SERVICES) else 0

    assert eventually(used, timeout=90, interval=3)
    assert used() <= REST_BYTES, f"{used() / 2**20:.0f} MiB"


def test_no_secret_is_in_the_logs(cluster_platform: Cluster) -> None:
    said = cluster_platform.kubectl("logs", "--selector", "app.kubernetes.io/part-of=lepton", "--tail", "-1", "--max-log-requests", "20")
    assert cluster_platform.key not in said
    for secret in cluster_platform.get("secrets", "--selector", "app.kubernetes.io/part-of=lepton"):
        for name, value in secret["data"].items():
            if name.endswith(("PASSWORD", "SECRET_KEY", "BOOTSTRAP_KEY")):
                decoded = subprocess.run(["base64", "-d"], input=value, capture_output=True, text=True, check=True, timeout=10).stdout
                assert decoded not in said, name
