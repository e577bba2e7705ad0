"""The platform on a Kubernetes cluster for tests: all in a namespace of its own, looked at and broken by kubectl, and removed again."""

import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import psutil
import pytest

from tests.composed import ROOT
from tests.platform import Reachable

SERVICES = ("gateway", "control", "accounts", "data", "data-worker", "compute", "training", "deployment", "marketplace", "runner")
_EXPORT = re.compile(r"LEPTON_URL=(\S+) LEPTON_API_KEY=(\S+)")


@cache
def _why_not() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster: tools/cluster/up.sh starts one"
    if not shutil.which("kubectl"):
        return "kubectl is missing"
    done = subprocess.run(["kubectl", "get", "nodes"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"no cluster answers: {done.stderr.strip()[-300:]}"


def require_cluster() -> None:
    """Skips the test where there is no cluster, or fails it where one was promised (LEPTON_CLUSTER, as in CI)."""
    if why := _why_not():
        if os.environ.get("LEPTON_CLUSTER"):
            pytest.fail(f"{why}; with LEPTON_CLUSTER set this is no reason to skip")
        pytest.skip(why)


def kubectl(*words: str, timeout: float = 120, check: bool = True, text: str | None = None) -> str:
    """What it prints; raises AssertionError with its words when it fails."""
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=timeout, check=False, input=text)
    assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@dataclass
class Cluster(Reachable):
    """One namespace with all of k8s/overlays/dev. What tests ask of `Platform` it answers too."""

    namespace: str
    node_port: int
    address: str = ""
    key: str = ""
    seconds: float = 0.0

    @property
    def url(self) -> str:
        return self.address

    @property
    def env(self) -> dict[str, str]:
        return {"LEPTON_URL": self.url, "LEPTON_API_KEY": self.key}

    def processes(self) -> list[psutil.Process]:
        """None that this machine need see."""
        return []

    def up(self, **environment: str) -> "Cluster":
        """Applies the manifests, as a user does; `environment` may name another version."""
        started = time.monotonic()
        found = _EXPORT.search(self._tool("up", **environment))
        assert found
        self.address, self.key = found[1], found[2]
        self.seconds = time.monotonic() - started
        return self

    def down(self) -> None:
        self._tool("down")

    def kubectl(self, *words: str, **options: Any) -> str:
        return kubectl("--namespace", self.namespace, *words, **options)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """The objects, as the cluster has them."""
        return list(json.loads(self.kubectl("get", *words, "--output", "json"))["items"])

    def pods(self, service: str) -> list[str]:
        """Names of those that are not on their way out."""
        found = self.get("pods", "--selector", f"app.kubernetes.io/name={service}")
        return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def workload(self, service: str) -> str:
        return f"statefulset/{service}" if service == "runner" else f"deployment/{service}"

    def rolled_out(self, service: str) -> None:
        self.kubectl("rollout", "status", self.workload(service), "--timeout", "240s", timeout=260)

    def workspace(self, name: str) -> "Cluster":
        """The same platform, in a new workspace on the largest plan."""
        with self.http() as http:
            made = http.post("/v1/workspaces", json={"name": name, "plan": "pro"})
            assert made.status_code == 201, made.text
        return replace(self, key=made.json()["secret"])

    def log(self) -> str:
        """Who is how, and what was said last, for a failing test's message."""
        selector = "app.kubernetes.io/part-of=lepton"
        return self.kubectl("get", "pods", check=False) + self.kubectl("logs", "--selector", selector, "--tail", "10", check=False)[-12000:]

    def _tool(self, word: str, **environment: str) -> str:
        own = {"LEPTON_NAMESPACE": self.namespace, "LEPTON_NODE_PORT": str(self.node_port)}
        done = subprocess.run(
            [ROOT / "tools" / "k8s.sh", word],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"tools/k8s.sh {word}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        return done.stdout


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A platform for the block; whatever happens nothing of it stays."""
    require_cluster()
    platform = Cluster(f"lepton-test-{secrets.token_hex(4)}", 31000 + secrets.randbelow(1700))
    try:
        yield platform.up()
    finally:
        platform.down()
