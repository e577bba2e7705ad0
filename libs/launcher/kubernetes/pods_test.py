"""What a pod's status is taken for."""

import json
from typing import Any

import pytest
from lightkube.models.core_v1 import ContainerState
from lightkube.resources.core_v1 import Pod

from libs.launcher import Exit
from libs.launcher.kubernetes.pods import Seen, see


def pod(program: dict[str, Any] | None = None, *, fetch: dict[str, Any] | None = None, deleted: bool = False, **status: Any) -> Pod:
    if program is not None:
        status["containerStatuses"] = [
            {"name": "program", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": program}
        ]
    if fetch is not None:
        status["initContainerStatuses"] = [
            {"name": "fetch", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": fetch}
        ]
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    return Pod.from_dict({"metadata": metadata, "status": status})


def ended(code: int, message: Any = "", reason: str = "Error") -> dict[str, Any]:
    text = message if isinstance(message, str) else json.dumps(message)
    return {"terminated": {"exitCode": code, "message": text, "reason": reason}}


@pytest.mark.parametrize(
    ("state", "exit"),
    [
        (ended(0, {"code": 0, "signal": None, "oom": False}), Exit(0)),
        (ended(3, {"code": 3, "signal": None, "oom": False}), Exit(3)),
        (ended(143, {"code": None, "signal": 15, "oom": False}), Exit(None, 15)),
        (ended(137, {"code": None, "signal": 9, "oom": True}), Exit(None, 9, oom=True)),
        (ended(137, reason="OOMKilled"), Exit(None, 9, oom=True)),
        (ended(137), Exit(None, 9)),
        (ended(1), Exit(1)),
        # Words that the program itself has put there.
        (ended(1, "[]"), Exit(1)),
        (ended(1, "{}"), Exit(1)),
        (ended(1, {"code": "many", "signal": None, "oom": False}), Exit(1)),
        (ended(1, {"code": 1e999, "signal": None}), Exit(1)),
        (ended(127, {"errno": 2}), Exit(127)),
    ],
)
def test_exits(state: dict[str, Any], exit: Exit) -> None:
    assert see(pod(state)).exit == exit


def test_a_program_that_runs() -> None:
    assert see(pod({"running": {}}, podIP="10.0.0.7", phase="Running")) == Seen(ip="10.0.0.7", running=True)


@pytest.mark.parametrize("empty", [Pod(), pod(), pod({}), pod({"waiting": {}}), pod({"waiting": {"reason": "PodInitializing"}})])
def test_a_pod_of_which_nothing_is_known_yet(empty: Pod) -> None:
    assert see(empty) == Seen()


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (pod(ended(127, {"errno": 13})), "Permission denied"),
        (pod(ended(128, "exec: no such file", "StartError")), "exec: no such file"),
        (pod(fetch=ended(1, "the owner cannot be reached"), phase="Failed"), "its files could not be brought to it: the owner"),
    ],
)
def test_why_a_program_has_not_begun(shown: Pod, words: str) -> None:
    assert words in see(shown).not_started


@pytest.mark.parametrize(
    ("reason", "words", "hopeless"),
    [
        ("ImagePullBackOff", "the image i cannot be pulled: back off", False),
        ("ErrImageNeverPull", "the image i cannot be pulled: back off", True),
        ("CreateContainerConfigError", "its container cannot be made: back off", False),
    ],
)
def test_why_a_container_waits(reason: str, words: str, hopeless: bool) -> None:
    seen = see(pod({"waiting": {"reason": reason, "message": "back\noff"}}, phase="Pending"))
    assert (seen.stuck, seen.hopeless) == (words, hopeless)


def test_a_pod_without_a_place() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: 3 Insufficient memory"}
    assert see(pod(phase="Pending", conditions=[condition])).unplaced == "0/3 nodes: 3 Insufficient memory"


def test_ends_that_are_the_clusters_doing() -> None:
    assert see(pod(phase="Failed", reason="Evicted", message="The node was low on memory")).lost.endswith("low on memory")
    unknown = see(pod(ended(137, reason="ContainerStatusUnknown"), phase="Failed"))
    assert (unknown.exit, bool(unknown.lost)) == (None, True)
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}
    both = see(pod(ended(143, {"code": None, "signal": 15, "oom": False}), phase="Failed", conditions=[disrupted]))
    assert (both.exit, both.lost) == (Exit(None, 15), "the cluster ended its pod: preempted")
    assert see(pod(ended(143), deleted=True)).lost == "its pod was deleted"
    assert see(pod(ended(1), phase="Failed")).lost == ""


def test_words_have_an_end() -> None:
    assert len(see(pod({"waiting": {"reason": "ErrImagePull", "message": "x" * 10_000}})).stuck) < 500


@pytest.mark.parametrize("now", [{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}, ended(143)])
def test_what_runs_in_a_container_that_was_begun_anew_is_not_the_program(now: dict[str, Any]) -> None:
    seen = pod(now, phase="Running")
    assert seen.status and seen.status.containerStatuses
    seen.status.containerStatuses[0].lastState = ContainerState.from_dict(ended(3))
    assert (see(seen).exit, see(seen).running, see(seen).stuck) == (Exit(3), False, "")
