"""What stands in a Job and its Secret, and what does not."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.launcher import Launch, LaunchError, LauncherSettings
from libs.launcher.kubernetes import manifests, meeting

SETTINGS = LauncherSettings(url="kubernetes:", image="lepton/worker:1")
FOLDER = Path("/work/run-1")
LAUNCH = Launch(
    "run-1",
    [sys.executable, "-m", "program", FOLDER],
    {"TOKEN": "hunter2", "TMPDIR": "/work/run-1/tmp", "CUDA_VISIBLE_DEVICES": "3,5"},
    cwd=FOLDER,
    memory_bytes=1 << 30,
    stdout=FOLDER / "out",
    stderr=FOLDER / "out",
    inputs=[Path("/work/packages/a")],
    journals=[FOLDER / "events.jsonl"],
    cpu_millis=1500,
    devices=2,
    node="node-7",
    port=8000,
    seconds=90.5,
    labels={"role": "run", "workspace": "acme", "job": "not fit for a label!"},
)


def job(launch: Launch = LAUNCH, settings: LauncherSettings = SETTINGS) -> dict[str, Any]:
    return manifests.job("run-1-abc", launch, settings)


def pod(launch: Launch = LAUNCH, settings: LauncherSettings = SETTINGS) -> dict[str, Any]:
    return dict(job(launch, settings)["spec"]["template"]["spec"])


def containers(pod: dict[str, Any]) -> dict[str, Any]:
    return {container["name"]: container for container in (*pod["initContainers"], *pod["containers"])}


def secret(launch: Launch = LAUNCH) -> dict[str, Any]:
    return manifests.secret("run-1-abc", "uid-1", launch, "10.0.0.1:8444", "PEM", "t0ken", SETTINGS)


def test_nothing_secret_stands_in_the_job() -> None:
    text = json.dumps(job())
    assert "hunter2" not in text
    assert "program" not in json.dumps([container["command"][:-1] for container in containers(pod()).values()])


def test_each_container_sees_its_own_part_of_the_secret() -> None:
    assert secret()["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    keys = {volume["name"]: volume["secret"]["items"][0]["key"] for volume in pod()["volumes"] if "secret" in volume}
    seen = {
        name: {keys.get(mount["name"]) for mount in container["volumeMounts"]} - {None} for name, container in containers(pod()).items()
    }
    couriers = {"courier.py", "task.json"}
    assert seen == {"fetch": couriers, "mirror": couriers, "program": {"courier.py", "program.json"}}
    assert "t0ken" not in secret()["stringData"]["program.json"]
    assert "hunter2" not in secret()["stringData"]["task.json"]


def test_a_pod_may_do_little() -> None:
    spec = pod()
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["securityContext"]["runAsNonRoot"]
    for container in containers(spec).values():
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (False, True)
        assert security["capabilities"] == {"drop": ["ALL"]}
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_the_program_gets_what_it_was_promised() -> None:
    resources = containers(pod())["program"]["resources"]
    assert resources["requests"] == {"memory": str(1 << 30), "cpu": "1500m", "nvidia.com/gpu": "2"}
    assert int(resources["limits"]["memory"]) - (1 << 30) == manifests.WRAPPER_BYTES
    assert pod()["nodeSelector"] == {"kubernetes.io/hostname": "node-7"}
    assert pod()["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert containers(pod(Launch("bare", ["true"])))["program"]["resources"] == {"requests": {}, "limits": {}}
    assert "nodeSelector" not in pod(Launch("bare", ["true"]))


def test_the_program_is_the_pods_own() -> None:
    program = json.loads(secret()["stringData"]["program.json"])
    assert program["argv"] == ["python", "-m", "program", "/work/run-1"]
    assert program["env"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    task = json.loads(secret()["stringData"]["task.json"])
    assert (task["roots"], task["journals"], task["skip"]) == (["/work/run-1", "/work/packages/a"], ["out", "events.jsonl"], ["tmp"])


def test_folders_are_where_the_program_looks_for_them() -> None:
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in containers(pod())["program"]["volumeMounts"]}
    assert (mounts["/work/run-1"], mounts["/work/packages/a"], mounts["/lepton/control"]) == (False, True, True)


def test_a_job_begins_suspended_and_runs_once() -> None:
    spec = job()["spec"]
    assert (spec["suspend"], spec["completions"], spec["backoffLimit"]) == (True, 1, 0)
    assert spec["activeDeadlineSeconds"] == 91 + manifests.DEADLINE_SLACK_SECONDS
    assert "activeDeadlineSeconds" not in job(Launch("server", ["serve"]))["spec"]


def test_workers_begin_together_and_lie_evenly() -> None:
    gang = replace(LAUNCH, workers=4, nodes=["node-7", "node-8"])
    spec = job(gang)["spec"]
    assert [spec[key] for key in ("suspend", "completions", "parallelism", "backoffLimit")] == [True, 4, 4, 0]
    inside = pod(gang)
    assert inside["subdomain"] == "run-1-abc"
    assert "nodeSelector" not in inside
    (term,) = inside["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["node-7", "node-8"]
    (evenly,) = inside["topologySpreadConstraints"]
    assert (evenly["maxSkew"], evenly["whenUnsatisfiable"]) == (1, "DoNotSchedule")
    told = json.loads(secret(gang)["stringData"]["program.json"])["env"]
    assert (told["PET_NNODES"], told["PET_RDZV_ENDPOINT"]) == ("4", "run-1-abc-0.run-1-abc:29400")
    assert pod(replace(LAUNCH, workers=2))["nodeSelector"] == {"kubernetes.io/hostname": "node-7"}
    assert "subdomain" not in pod()


def test_what_workers_meet_by_goes_with_their_job_and_is_theirs_alone() -> None:
    service, policy = (make("run-1-abc", "uid-1", SETTINGS) for make in (meeting.service, meeting.policy))
    for made in (service, policy):
        assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    own = {manifests.LAUNCH: "run-1-abc"}
    assert (service["spec"]["clusterIP"], service["spec"]["selector"]) == ("None", own)
    assert policy["spec"]["podSelector"] == {"matchLabels": own}
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]


def test_labels_fit_and_keep_what_they_meant() -> None:
    metadata = job()["metadata"]
    assert (metadata["labels"]["lepton.dev/role"], metadata["labels"]["lepton.dev/workspace"]) == ("run", "acme")
    assert len(metadata["labels"]["lepton.dev/job"]) == 32
    assert metadata["annotations"] == {"lepton.dev/id": "run-1", "lepton.dev/job": "not fit for a label!"}


@pytest.mark.parametrize(
    "launch",
    [
        Launch("a", ["true"], stdout=Path("/elsewhere/out")),
        Launch("a", ["true"], cwd=FOLDER, stderr=FOLDER.parent / "err"),
        Launch("a", ["true"], cwd=Path("relative")),
        Launch("a", ["true"], cwd=FOLDER, inputs=[Path("relative")]),
    ],
)
def test_what_a_pod_cannot_do_is_refused_in_words(launch: Launch) -> None:
    with pytest.raises(LaunchError, match="in a cluster"):
        manifests.require_possible(launch)


@pytest.mark.parametrize("changed", [{"image": ""}, {"owner": "Not A Label"}, {"owner": "x" * 60}])
def test_settings_that_cannot_work_are_refused(changed: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="LAUNCHER__"):
        LauncherSettings(**{"url": "kubernetes:", "image": "i", **changed})  # type: ignore[arg-type]
