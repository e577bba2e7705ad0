"""A launcher of pods for tests: on the cluster that KUBECONFIG names, where its nodes have the platform's worker image.

Pods must reach this machine.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest

from libs.launcher import Launcher, LauncherSettings, open_launcher
from libs.lifecycle import Lifecycle
from tests import cluster

IMAGE = os.environ.get("LEPTON_CLUSTER_IMAGE", "lepton/worker:dev")
NAMESPACE = os.environ.get("LEPTON_CLUSTER_NAMESPACE", "lepton-launches")


@cache
def _why_not() -> str:
    names = cluster.kubectl("get", "nodes", "--output", "jsonpath={.items[*].status.images[*].names[*]}").split()
    if not any(name == IMAGE or name.endswith(f"/{IMAGE}") for name in names):
        return f"no node of the cluster has the image {IMAGE}"
    if NAMESPACE not in cluster.kubectl("get", "namespaces", "--output", "name"):
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    return ""


def launcher_settings() -> LauncherSettings:
    """Settings of a launcher of its own; skips the test where there is no cluster."""
    cluster.require_cluster()
    if why := _why_not():
        if os.environ.get("LEPTON_CLUSTER"):
            pytest.fail(f"{why}; with LEPTON_CLUSTER set this is no reason to skip")
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
    return cluster.kubectl("--namespace", NAMESPACE, *words)


@asynccontextmanager
async def running_launcher(settings: LauncherSettings) -> AsyncIterator[Launcher]:
    launcher, parts = open_launcher(settings)
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    try:
        yield launcher
    finally:
        await lifecycle.stop()


@pytest.fixture
async def launcher(settings: LauncherSettings) -> AsyncIterator[Launcher]:
    """Of `settings`, which each suite has of its own."""
    async with running_launcher(settings) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"
