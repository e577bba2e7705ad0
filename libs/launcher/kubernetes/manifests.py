"""What a launch is in the cluster: a Job of a pod a worker, and a Secret of what passes between owner and pods. Knows no API server."""

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from libs.launcher.kubernetes import courier, meeting
from libs.launcher.kubernetes.meeting import LAUNCH as LAUNCH
from libs.launcher.kubernetes.meeting import OWNER as OWNER
from libs.launcher.launcher import Launch, LaunchError
from libs.launcher.opening import LauncherSettings

MIB, CORE_MILLIS = 1 << 20, 1000
USER = 10001
PROGRAM, FETCH, MIRROR = "program", "fetch", "mirror"
GROUP = "lepton.dev/group"
# What the wrapper around the program takes itself, so that the program has all that it was promised.
WRAPPER_BYTES = 24 * MIB
# A pod that is evicted: for the program to end, and for what it wrote last to be carried home.
EVICTED_SECONDS, CARRY_SECONDS = 15, 25
# Owners end what takes too long themselves, and say why; this is for those that cannot.
DEADLINE_SLACK_SECONDS = 600
KEPT_SECONDS = 600
_CODE, _TASK, TOLD, _CONTROL, _STATE = "/lepton/code", "/lepton/task", "/lepton/program", "/lepton/control", "/lepton/state"
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def require_possible(launch: Launch) -> None:
    """Raises LaunchError for what a pod cannot do."""
    for path in (launch.stdout, launch.stderr, *launch.journals):
        if path and not (launch.cwd and path.is_relative_to(launch.cwd)):
            raise LaunchError(f"{launch.id} could not be started: in a cluster {path.name} must lie in the program's own folder")
    for path in (launch.cwd, *launch.inputs):
        if path and not path.is_absolute():
            raise LaunchError(f"{launch.id} could not be started: in a cluster its folder {path} must be an absolute path")


def job(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """Suspended: its pods begin, all at once, once the Secret is there."""
    labels, annotations = labels_of(name, launch, settings)
    spec: dict[str, Any] = {
        "suspend": True,
        "completionMode": "Indexed",
        "completions": launch.workers,
        "parallelism": launch.workers,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod_of(name, launch, settings)},
    }
    if launch.seconds is not None:
        spec["activeDeadlineSeconds"] = math.ceil(launch.seconds) + DEADLINE_SLACK_SECONDS
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": spec,
    }


def secret(name: str, uid: str, launch: Launch, address: str, certificate: str, token: str, settings: LauncherSettings) -> dict[str, Any]:
    """Owned by the Job: it goes with it. Each container sees its own part alone."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    contents = {"task.json": way(name, address, certificate, token) | files(launch), "program.json": program(name, launch, settings)}
    return secret_of(owner, contents, settings, {LAUNCH: name})


def secret_of(owner: dict[str, Any], contents: dict[str, Any], settings: LauncherSettings, labels: dict[str, str]) -> dict[str, Any]:
    """Of its owner's name, with the courier's source and what else pods are told."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": owner["name"], "labels": {OWNER: settings.owner, **labels}, "ownerReferences": [owner]},
        "immutable": True,
        "stringData": {"courier.py": Path(courier.__file__).read_text()} | {key: json.dumps(value) for key, value in contents.items()},
    }


def way(id: str, address: str, certificate: str, token: str) -> dict[str, Any]:
    """How a courier finds its owner, and where it keeps its own things."""
    return {
        "address": address,
        "certificate": certificate,
        "id": id,
        "token": token,
        "state": f"{_STATE}/sent.json",
        "control": _CONTROL,
    }


def files(launch: Launch) -> dict[str, Any]:
    """What a courier brings and carries home."""
    return {
        "roots": [str(path) for path in _roots(launch)],
        "journals": journals(launch),
        "skip": _skipped(launch),
        "mirrored": launch.cwd is not None,
    }


def program(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """What the wrapper runs."""
    environment = dict(launch.env) | meeting.variables(name, launch)
    if launch.devices:
        # A pod counts the devices that it was given from 0.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in range(launch.devices))
    return {
        # This process's own Python is another machine's.
        "argv": [settings.python if str(word) == sys.executable else str(word) for word in launch.argv],
        "env": environment,
        "cwd": str(launch.cwd) if launch.cwd else "",
        "stdout": str(launch.stdout or ""),
        "stderr": str(launch.stderr or ""),
        "control": _CONTROL,
        "told": "/dev/termination-log",
        "grace": EVICTED_SECONDS,
        # A Job's pod begins its containers once.
        "once": bool(launch.group),
    }


def journals(launch: Launch) -> list[str]:
    """By their paths in the folder, in the order in which they are carried: what the program tells comes after what it printed."""
    paths = [path for path in (launch.stdout, launch.stderr, *launch.journals) if path and launch.cwd]
    return list(dict.fromkeys(str(path.relative_to(launch.cwd)) for path in paths if launch.cwd))


def _roots(launch: Launch) -> list[Path]:
    return [*([launch.cwd] if launch.cwd else []), *launch.inputs]


def _skipped(launch: Launch) -> list[str]:
    """Its temporary files stay where they are."""
    scratch = Path(launch.env.get("TMPDIR", "/"))
    return [str(scratch.relative_to(launch.cwd))] if launch.cwd and scratch != launch.cwd and scratch.is_relative_to(launch.cwd) else []


def labels_of(name: str, launch: Launch, settings: LauncherSettings) -> tuple[dict[str, str], dict[str, str]]:
    """Labels, and the annotations that say in full what does not fit into one."""
    labels = {
        "app.kubernetes.io/name": "lepton",
        "app.kubernetes.io/component": launch.labels.get("role", "program"),
        "app.kubernetes.io/managed-by": "lepton",
        OWNER: settings.owner,
        LAUNCH: name,
    }
    annotations = {"lepton.dev/id": launch.id}
    for key, value in launch.labels.items():
        fits = _VALUE.fullmatch(value) is not None
        labels[f"lepton.dev/{key}"] = value if fits else hashlib.sha256(value.encode()).hexdigest()[:32]
        if not fits:
            annotations[f"lepton.dev/{key}"] = value
    return labels, annotations


def pod_of(name: str, launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """Its Secret has the same name."""
    folders = [{"name": f"folder-{number}", "mountPath": str(path)} for number, path in enumerate(_roots(launch))]
    fetch = _courier(FETCH, folders, settings)
    mirror = _courier(MIRROR, folders[:1] if launch.cwd else [], settings) | {"restartPolicy": "Always"}
    volumes = ["control", "state", "scratch", *(folder["name"] for folder in folders)]
    # A program that fills its node's disk is evicted.
    bounded = {"emptyDir": {"sizeLimit": str(2 * settings.total_bytes)}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": EVICTED_SECONDS + CARRY_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [fetch, mirror],
        "containers": [_program(launch, folders, settings)],
        "volumes": [
            *(
                _secret_volume(volume, name, key)
                for volume, key in (("code", "courier.py"), ("task", "task.json"), ("told", "program.json"))
            ),
            *({"name": volume} | bounded for volume in volumes),
        ],
    }
    pod |= meeting.pod(name, launch)
    if launch.node and not launch.nodes:
        pod["nodeSelector"] = {"kubernetes.io/hostname": launch.node}
    if launch.devices:
        pod["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in settings.gpu_taints]
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    if settings.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": settings.image_pull_secret}]
    return pod


def _secret_volume(volume: str, name: str, key: str) -> dict[str, Any]:
    return {"name": volume, "secret": {"secretName": name, "defaultMode": 0o440, "items": [{"key": key, "path": key}]}}


def _container(name: str, words: list[str], mounts: list[dict[str, Any]], settings: LauncherSettings) -> dict[str, Any]:
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [settings.python, "-I", "-S", f"{_CODE}/courier.py", *words],
        "volumeMounts": [{"name": "code", "mountPath": _CODE, "readOnly": True}, *mounts],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _courier(name: str, folders: list[dict[str, Any]], settings: LauncherSettings) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "task", "mountPath": _TASK, "readOnly": True},
        {"name": "control", "mountPath": _CONTROL},
        {"name": "state", "mountPath": _STATE},
        *folders,
    ]
    return _container(name, [name, f"{_TASK}/task.json"], mounts, settings) | {
        "env": [{"name": "LEPTON_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _program(launch: Launch, folders: list[dict[str, Any]], settings: LauncherSettings) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [
        {"name": "told", "mountPath": TOLD, "readOnly": True},
        {"name": "control", "mountPath": _CONTROL, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 (the pod's own)
        *(folder | {"readOnly": launch.cwd is None or number > 0} for number, folder in enumerate(folders)),
    ]
    container = _container(PROGRAM, ["run", f"{TOLD}/program.json"], mounts, settings) | {"resources": _resources(launch, settings)}
    if launch.port:
        container["ports"] = [{"name": "serve", "containerPort": launch.port}]
    return container


def _resources(launch: Launch, settings: LauncherSettings) -> dict[str, Any]:
    """The program gets what its allocation says, and no more."""
    requests, limits = {}, {}
    if launch.memory_bytes:
        requests["memory"] = str(launch.memory_bytes)
        limits["memory"] = str(launch.memory_bytes + WRAPPER_BYTES)
    if launch.cpu_millis:
        limits["cpu"] = f"{launch.cpu_millis}m"
        # Whole cores are its own. Shares of one are promised beside them (ADR 0005): a place must not depend on both being free.
        requests["cpu"] = f"{launch.cpu_millis if launch.cpu_millis >= CORE_MILLIS else launch.cpu_millis // 10}m"
    if launch.devices:
        requests[settings.gpu_resource] = limits[settings.gpu_resource] = str(launch.devices)
    return {"requests": requests, "limits": limits}
