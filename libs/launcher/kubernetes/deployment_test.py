"""What stands in a group's Deployment, its Secret and the change that binds a pod, and what does not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from libs.launcher import Launch, LaunchError, LauncherSettings
from libs.launcher.kubernetes import deployment
from libs.launcher.kubernetes.manifests_test import LAUNCH, SETTINGS

GROUPED = replace(LAUNCH, group="line-1", seconds=None, labels={"role": "replica", "workspace": "acme"})


def made(launch: Launch = GROUPED, settings: LauncherSettings = SETTINGS) -> dict[str, Any]:
    return deployment.deployment("line-1-abc", launch, settings)


def pod(launch: Launch = GROUPED) -> dict[str, Any]:
    return dict(made(launch)["spec"]["template"]["spec"])


def test_what_differs_between_launches_stands_in_no_deployment() -> None:
    other = replace(GROUPED, id="other", argv=["x"], env={"TOKEN": "s3cret"}, cwd=Path("/work/run-2"), node="node-8")
    other = replace(other, stdout=Path("/work/run-2/out"), stderr=None, journals=[])
    assert made() == made(other)
    assert deployment.kind_of(GROUPED, SETTINGS) == deployment.kind_of(other, SETTINGS)
    text = json.dumps([made(), deployment.secret("line-1-abc", "uid", "10.0.0.1:8444", "PEM", "t0ken", SETTINGS)])
    assert "hunter2" not in text and "node-7" not in text and "run-1" not in text


@pytest.mark.parametrize("changed", [{"memory_bytes": 1}, {"devices": 1}, {"inputs": ()}, {"port": 1}, {"cwd": Path("/elsewhere/run-1")}])
def test_launches_that_need_other_pods_are_of_another_kind(changed: dict[str, Any]) -> None:
    assert deployment.kind_of(replace(GROUPED, **changed), SETTINGS) != deployment.kind_of(GROUPED, SETTINGS)


def test_a_pod_waits_at_its_gate_and_is_the_same_as_a_jobs_otherwise() -> None:
    spec = pod()
    assert (spec["schedulingGates"], spec["restartPolicy"]) == ([{"name": deployment.GATE}], "Always")
    assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
    assert "nodeSelector" not in spec
    [program] = spec["containers"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in program["volumeMounts"]}
    assert (mounts["/work"], mounts["/work/packages/a"], mounts["/lepton/program"], mounts["/lepton/control"]) == (False, True, False, True)
    assert "/lepton/task" not in mounts
    labels = made()["spec"]["template"]["metadata"]["labels"]
    assert (labels["lepton.dev/group"], labels["lepton.dev/role"]) == ("line-1-abc", "replica")
    assert "lepton.dev/launch" not in labels


def test_no_program_sees_the_secret_of_its_group() -> None:
    secret = deployment.secret("line-1-abc", "uid", "10.0.0.1:8444", "PEM", "t0ken", SETTINGS)
    assert set(secret["stringData"]) == {"courier.py", "task.json"}
    [program] = pod()["containers"]
    names = {mount["name"] for mount in program["volumeMounts"]}
    keys = [v["secret"]["items"][0]["key"] for v in pod()["volumes"] if "secret" in v and v["name"] in names]
    assert keys == ["courier.py"]


def test_the_pod_that_is_bound_is_told_all() -> None:
    told = {name: json.loads(text) for name, text in deployment.contents(GROUPED, SETTINGS).items()}
    assert told["task.json"]["roots"] == ["/work/run-1", "/work/packages/a"]
    assert (told["program.json"]["env"]["TOKEN"], told["program.json"]["once"]) == ("hunter2", True)


def test_a_bound_pod_goes_where_its_launch_has_its_place_and_is_taken_last() -> None:
    change = deployment.opened("run-1-abc", GROUPED, SETTINGS)
    assert change["spec"] == {"schedulingGates": None, "nodeSelector": {"kubernetes.io/hostname": "node-7"}}
    assert change["metadata"]["labels"] == {"lepton.dev/launch": "run-1-abc"}
    assert change["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"] == "1"
    assert "nodeSelector" not in deployment.opened("run-1-abc", replace(GROUPED, node=""), SETTINGS)["spec"]


def test_gates() -> None:
    assert deployment.is_gated(Pod.from_dict({"spec": {"containers": [], "schedulingGates": [{"name": deployment.GATE}]}}))
    assert not deployment.is_gated(Pod.from_dict({"spec": {"containers": [], "schedulingGates": [{"name": "another/gate"}]}}))
    assert not deployment.is_gated(Pod())


def test_a_deployment_goes_with_its_owners_pod_where_that_is_known() -> None:
    assert "ownerReferences" not in made()["metadata"]
    [owner] = made(settings=SETTINGS.model_copy(update={"owner": "runner-0", "owner_uid": "u-1"}))["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "runner-0", "u-1")


@pytest.mark.parametrize("changed", [{"seconds": 1.0}, {"cwd": Path("/run-1")}, {"env": {"LARGE": "x" * (1 << 20)}}])
def test_what_a_group_cannot_do_is_refused_in_words(changed: dict[str, Any]) -> None:
    with pytest.raises(LaunchError, match="could not be started: "):
        deployment.require_possible(replace(GROUPED, stdout=None, stderr=None, journals=[], **changed), SETTINGS)
