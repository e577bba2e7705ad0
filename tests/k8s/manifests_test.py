"""Every manifest is one that the cluster takes, and no pod of the platform may more than it needs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import SERVICES, kubectl, require_cluster
from tests.composed import ROOT

K8S = ROOT / "k8s"
BASES = sorted(path.parent for path in (K8S / "base").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
OVERLAYS = ("dev", "prod")


def text_of(folder: Path) -> str:
    """A kustomization as `kubectl apply -k` sends it."""
    return kubectl("kustomize", str(folder))


def built(folder: Path) -> list[dict[str, Any]]:
    """Its objects."""
    return list(yaml.safe_load_all(text_of(folder)))


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """For dry runs, which need one that is there."""
    require_cluster()
    name = "lepton-dry-run"
    kubectl("create", "namespace", name, check=False)
    yield name
    kubectl("delete", "namespace", name)


def accepted(folder: Path, namespace: str) -> list[str]:
    text = re.sub(r"^( *namespace:) lepton$", rf"\1 {namespace}", text_of(folder), flags=re.MULTILINE)
    # Another platform may have it.
    text = text.replace("nodePort: 30080", "nodePort: 32760")
    dry = ("--server-side", "--dry-run=server", "--validate=strict", "--namespace", namespace)
    return kubectl("apply", *dry, "--output", "name", "--filename", "-", text=text).split()


@pytest.mark.parametrize("folder", BASES, ids=lambda path: path.name)
def test_each_service_can_be_applied_alone(folder: Path, namespace: str) -> None:
    assert accepted(folder, namespace)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_is_accepted(overlay: str, namespace: str) -> None:
    names = accepted(K8S / "overlays" / overlay, namespace)
    for service in SERVICES:
        assert f"{'statefulset' if service == 'runner' else 'deployment'}.apps/{service}" in names


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_is_accepted(component: str, namespace: str, tmp_path: Path) -> None:
    up = "../" * len(tmp_path.parts[1:])
    place = ROOT.relative_to("/")
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{up}{place}/k8s/base, {up}{place}/k8s/base/runner]\ncomponents: [{up}{place}/k8s/components/{component}]\n"
    )
    assert len(accepted(tmp_path, namespace)) >= 30


def workloads(overlay: str, part: str) -> list[dict[str, Any]]:
    require_cluster()
    return [
        each
        for each in built(K8S / "overlays" / overlay)
        if each["kind"] in ("Deployment", "StatefulSet") and each["metadata"]["labels"]["app.kubernetes.io/part-of"].startswith(part)
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_the_platform_are_confined_and_watched(overlay: str) -> None:
    found = workloads(overlay, "lepton")
    assert {each["metadata"]["name"] for each in found} >= set(SERVICES)
    for each in found:
        name, pod = each["metadata"]["name"], each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # One process speaks with the cluster, and nobody else.
        assert pod["automountServiceAccountToken"] is (name == "runner"), name
        assert pod["enableServiceLinks"] is False, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]}), name
            assert {"requests", "limits"} <= set(container["resources"]), name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert container["readinessProbe"], name
            assert container["livenessProbe"], name
            assert re.search(r":[^:]+$", container["image"]), name
            assert not container["image"].endswith(":latest"), name


def test_services_have_an_account_each_and_cannot_write_to_their_image() -> None:
    for each in workloads("prod", "lepton"):
        name, pod = each["metadata"]["name"], each["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == ("data" if name == "data-worker" else name)
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in pod["containers"])
        assert all("startupProbe" in container for container in pod["containers"])
    scalers = {
        each["metadata"]["name"]: each["spec"] for each in built(K8S / "overlays" / "prod") if each["kind"] == "HorizontalPodAutoscaler"
    }
    for each in workloads("prod", "lepton"):
        scaler = scalers.get(each["metadata"]["name"])
        assert (each["spec"].get("replicas"), scaler and scaler["minReplicas"]) in ((2, None), (None, 2)), each["metadata"]["name"]


def test_who_owns_a_database_migrates_it_before_it_starts_and_nobody_else_does() -> None:
    for each in workloads("prod", "lepton"):
        pod = each["spec"]["template"]["spec"]
        (service,) = pod["containers"]
        found = pod.get("initContainers", [])
        assert [container["name"] for container in found] == (
            ["migrate"] if each["metadata"]["labels"]["lepton.dev/serves"] == "grpc" else []
        )
        for container in found:
            assert container["command"] == ["python", "-m", f"services.{each['metadata']['name']}.main", "migrate"]
            for same in ("image", "imagePullPolicy", "envFrom", "securityContext"):
                assert container[same] == service[same], same
            assert {"requests", "limits"} <= set(container["resources"])
    (told,) = [each["data"] for each in built(K8S / "overlays" / "prod") if each["metadata"]["name"] == "lepton-platform"]
    assert told["LEPTON_PLATFORM_MIGRATE_ON_START"] == "false"


def test_no_secret_lies_in_a_manifest() -> None:
    for overlay in OVERLAYS:
        require_cluster()
        assert not [each for each in built(K8S / "overlays" / overlay) if each["kind"] == "Secret"]
    for path in K8S.rglob("*.yaml"):
        assert not re.search(r"(PASSWORD|SECRET_KEY|PRIVATE_KEY|_KEY): *[A-Za-z0-9]", path.read_text()), path


def test_selectors_say_nothing_that_changes_between_versions() -> None:
    for overlay in OVERLAYS:
        for each in workloads(overlay, "lepton"):
            assert set(each["spec"]["selector"]["matchLabels"]) == {"app.kubernetes.io/name"}


def test_prometheus_looks_for_every_process_that_offers_metrics() -> None:
    folder = K8S / "components" / "observability"
    services = yaml.safe_load_all((folder / "metrics.yaml").read_text())
    (scrape,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert set(found["names"]) == {service["metadata"]["name"] for service in services} >= {f"{service}-metrics" for service in SERVICES}
