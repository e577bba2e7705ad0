"""What a group of launches is in the cluster: a Deployment whose pods wait at a gate, and a Secret that they share. Knows no API server."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightkube.resources.core_v1 import Pod

from libs.launcher.kubernetes import manifests
from libs.launcher.kubernetes.manifests import GROUP, LAUNCH, TOLD
from libs.launcher.launcher import Launch, LaunchError
from libs.launcher.opening import LauncherSettings

# Until it is open the cluster gives the pod no place, and it costs nothing.
GATE = "lepton.dev/launch"
_COST = "controller.kubernetes.io/pod-deletion-cost"
_TOLD_BYTES = 1 << 20


def require_possible(launch: Launch, settings: LauncherSettings) -> None:
    """Raises LaunchError for what a Deployment's pod cannot do, beside what no pod can."""
    if launch.workers > 1:
        raise LaunchError(f"{launch.id} could not be started: several workers of one launch are no group")
    if launch.seconds is not None:
        raise LaunchError(f"{launch.id} could not be started: in a group of a cluster nothing ends by the clock")
    if launch.cwd and launch.cwd.parent == launch.cwd.parent.parent:
        raise LaunchError(f"{launch.id} could not be started: in a group of a cluster its folder {launch.cwd} must lie in another")
    if sum(map(len, contents(launch, settings).values())) > _TOLD_BYTES // 2:
        raise LaunchError(f"{launch.id} could not be started: its arguments and environment are larger than {_TOLD_BYTES // 2} bytes")


def kind_of(launch: Launch, settings: LauncherSettings) -> str:
    """The same for launches that pods of one Deployment can run."""
    return hashlib.sha256(json.dumps(_template("", launch, settings)).encode()).hexdigest()


def deployment(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """Of no pods yet. Its template never changes: there is nothing to roll out, and no history."""
    template = _template(name, launch, settings)
    metadata = {"name": name, **template["metadata"]}
    if settings.owner_uid:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": settings.owner, "uid": settings.owner_uid}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 0,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": {GROUP: name}},
            "template": template,
        },
    }


def secret(name: str, uid: str, address: str, certificate: str, token: str, settings: LauncherSettings) -> dict[str, Any]:
    """Owned by the Deployment. No program sees it."""
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": uid}
    way = manifests.way(name, address, certificate, token) | {"told": TOLD}
    return manifests.secret_of(owner, {"task.json": way}, settings, {GROUP: name})


def contents(launch: Launch, settings: LauncherSettings) -> Mapping[str, bytes]:
    """What the pod that is bound to the launch is told."""
    told = {"task.json": manifests.files(launch), "program.json": manifests.program("", launch, settings)}
    return {name: json.dumps(content).encode() for name, content in told.items()}


def is_gated(pod: Pod) -> bool:
    """Whether no launch is bound to it."""
    return any(gate.name == GATE for gate in (pod.spec and pod.spec.schedulingGates) or ())


def opened(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """The change that binds a pod to the launch. From then on the cluster takes others first where it has to take some."""
    annotations = manifests.labels_of(name, launch, settings)[1] | {_COST: "1"}
    change: dict[str, Any] = {"metadata": {"labels": {LAUNCH: name}, "annotations": annotations}, "spec": {"schedulingGates": None}}
    if launch.node:
        change["spec"]["nodeSelector"] = {"kubernetes.io/hostname": launch.node}
    return change


def _template(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    labels, annotations = manifests.labels_of(name, launch, settings)
    del labels[LAUNCH], annotations["lepton.dev/id"]
    # Each launch has a folder of its own in the one that all of them have at the same place.
    shared = replace(launch, node="", cwd=launch.cwd and launch.cwd.parent)
    pod = manifests.pod_of(name, shared, settings)
    told = {"name": "told", "emptyDir": {"medium": "Memory", "sizeLimit": str(_TOLD_BYTES)}}
    pod["volumes"] = [told if volume["name"] == "told" else volume for volume in pod["volumes"]]
    fetch, mirror = pod["initContainers"]
    fetch["volumeMounts"].append({"name": "told", "mountPath": TOLD})
    mirror["volumeMounts"].append({"name": "told", "mountPath": TOLD, "readOnly": True})
    [program] = pod["containers"]
    # It takes its order out of there: a container that the cluster begins anew finds none.
    program["volumeMounts"] = [mount | {"readOnly": False} if mount["name"] == "told" else mount for mount in program["volumeMounts"]]
    pod |= {"restartPolicy": "Always", "schedulingGates": [{"name": GATE}]}
    return {"metadata": {"labels": {**labels, GROUP: name}, "annotations": annotations}, "spec": pod}
