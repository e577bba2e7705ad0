"""What docs/kubernetes.md says of backup, removal and restore, as it stands there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.chaos.flow import Flow, asking
from tests.cluster import Cluster, cluster, kubectl
from tests.composed import ROOT
from tests.k8s.faults_test import serving
from tests.platform import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DOC = ROOT / "docs" / "kubernetes.md"


def block(after: str) -> str:
    """The commands that follow a line of the page."""
    found = re.search(rf"^{re.escape(after)}.*?^```bash\n(.*?)^```", DOC.read_text(), re.DOTALL | re.MULTILINE)
    assert found, after
    return found[1]


def run(commands: str, platform: Cluster, folder: Path) -> None:
    """In a folder where only the tree's tools are."""
    for name in ("tools", "Makefile", "k8s", "deploy"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    commands = re.sub(r"(-n |ace )lepton\b", rf"\1{platform.namespace}", commands).replace("make k8s-up", "tools/k8s.sh up")
    own = {"LEPTON_NAMESPACE": platform.namespace, "LEPTON_NODE_PORT": str(platform.node_port)}
    script = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(script, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


def test_a_backup_survives_the_removal_of_everything_and_nothing_else_does(tmp_path: Path) -> None:
    with cluster() as platform:
        tenant = platform.workspace("kept")
        flow = Flow(tenant, 2).start()
        serving(tenant, 1)
        flow.check(timeout=120)
        with tenant.http() as http:
            rows = http.get("/v1/datasets/line-0/versions/1/content", follow_redirects=True).content
            usage = http.get("/v1/usage").json()["lines"]
        run(block("Databases first:"), platform, tmp_path)
        claims = platform.get("persistentvolumeclaims")
        assert len(claims) == 3
        volumes = {f"persistentvolume/{claim['spec']['volumeName']}" for claim in claims}

        platform.down()
        assert not kubectl("get", "namespace", platform.namespace, "--ignore-not-found")
        assert eventually(lambda: not volumes & set(kubectl("get", "persistentvolumes", "--output", "name").split()), timeout=60)
        for kind in ("clusterroles", "clusterrolebindings", "customresourcedefinitions", "validatingwebhookconfigurations"):
            assert platform.namespace not in kubectl("get", kind, "--output", "name")

        run(block("Into an empty cluster:"), platform, tmp_path)
        with tenant.http() as http:
            assert http.get("/v1/datasets/line-0/versions/1/content", follow_redirects=True).content == rows
            before = {(line["metric"], line["resource"]): line["quantity"] for line in usage if line["metric"] == "training_rows"}
            after = {(line["metric"], line["resource"]): line["quantity"] for line in http.get("/v1/usage").json()["lines"]}
            assert before.items() <= after.items()
            assert eventually(lambda: http.get("/v1/endpoints/line").json()["state"] == "ready", timeout=120), platform.log()
        with asking(tenant) as (failed, seconds):
            assert eventually(lambda: len(seconds) > 20, timeout=60)
        assert not failed, failed[:3]
        with tenant.http() as http:
            made = http.post("/v1/training-jobs", json={**_job(), "dataset": "line-0@1"})
            assert made.status_code == 202, made.text
            path = f"/v1/training-jobs/{made.json()['id']}"
            assert eventually(lambda: http.get(path).json()["state"] == "succeeded", timeout=120), http.get(path).text


def _job() -> dict[str, object]:
    return {"name": "after", "task": "regression", "target": "y", "output_model": "after", "model": {"architecture": "linear"}}
