"""A Kubernetes cluster for tests: the one that KUBECONFIG names, where its nodes have the platform's worker image.

Where there is none a test says so and is skipped; with CI and LEPTON_CLUSTER set that is a failure. Pods must reach this machine.
"""

import os
import subprocess
from functools import cache
from uuid import uuid4

import pytest

from libs.launcher import LauncherSettings

IMAGE = os.environ.get("LEPTON_CLUSTER_IMAGE", "lepton/worker:dev")
NAMESPACE = os.environ.get("LEPTON_CLUSTER_NAMESPACE", "lepton-test")


@cache
def _why_not() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    try:
        names = _kubectl("get", "nodes", "--output", "jsonpath={.items[*].status.images[*].names[*]}").split()
        if not any(name == IMAGE or name.endswith(f"/{IMAGE}") for name in names):
            return f"no node of the cluster has the image {IMAGE}"
        if NAMESPACE not in _kubectl("get", "namespaces", "--output", "name"):
            _kubectl("create", "namespace", NAMESPACE)
            _kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        return f"the cluster does not answer: {error}"
    return ""


def require_cluster() -> LauncherSettings:
    """Settings of a launcher of its own; skips the test where there is no cluster."""
    if why := _why_not():
        if os.environ.get("CI") and os.environ.get("LEPTON_CLUSTER"):
            pytest.fail(f"{why}; here this is no reason to skip")
        pytest.skip(why)
    owner = f"test-{uuid4().hex[:12]}"
    return LauncherSettings(
        url="kubernetes:",
        namespace=NAMESPACE,
        image=IMAGE,
        image_pull_policy="IfNotPresent",
        owner=owner,
        exchange_port=0,
        place_seconds=20,
    )


def kubectl(*words: str) -> str:
    """What kubectl says, in the tests' namespace."""
    return _kubectl("--namespace", NAMESPACE, *words)


def _kubectl(*words: str) -> str:
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
