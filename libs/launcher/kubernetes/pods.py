"""What a pod's status means for the program in it. Knows no API server."""

import json
import os
import signal
from dataclasses import dataclass

from lightkube.models.core_v1 import ContainerState, ContainerStateTerminated, ContainerStatus
from lightkube.resources.core_v1 import Pod

from libs.launcher.kubernetes.manifests import FETCH, PROGRAM
from libs.launcher.launcher import Exit

LOST = Exit(None, signal.SIGKILL)
# Waiting reasons that no waiting helps.
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
_PULLS = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", *HOPELESS)
_USUAL = ("", "PodInitializing", "ContainerCreating")


@dataclass(frozen=True)
class Seen:
    """One look at a pod. `unplaced` and `stuck` say why it does not start, `lost` why it ended without its program's doing."""

    uid: str = ""
    ip: str = ""
    running: bool = False
    # Of the program; with `not_started` it is none of its own.
    exit: Exit | None = None
    not_started: str = ""
    # What a worker that is not the first printed before it failed.
    last_words: str = ""
    over: bool = False
    lost: str = ""
    unplaced: str = ""
    stuck: str = ""
    hopeless: bool = False


def see(pod: Pod) -> Seen:
    """What the status says, with words for whoever's program it is."""
    status = pod.status
    if status is None:
        return Seen()
    containers = {each.name: each for each in (*(status.initContainerStatuses or ()), *(status.containerStatuses or ()))}
    program = _first_life(containers.get(PROGRAM))
    exit, not_started = _exit(program.terminated) if program.terminated else (None, "")
    fetch = _first_life(containers.get(FETCH)).terminated
    if fetch and fetch.exitCode:
        not_started = f"its files could not be brought to it: {_short(fetch.message or fetch.reason)}"
    over = status.phase in ("Succeeded", "Failed")
    reason, stuck = _stuck(list(containers.values()))
    return Seen(
        uid=(pod.metadata.uid if pod.metadata else "") or "",
        ip=status.podIP or "",
        running=program.running is not None,
        exit=exit,
        not_started=not_started,
        last_words=_last_words(program.terminated),
        over=over,
        lost=_lost(pod, over and exit is None),
        unplaced=next(
            (
                _short(condition.message)
                for condition in status.conditions or ()
                if condition.type == "PodScheduled" and condition.status == "False" and condition.reason != "SchedulingGated"
            ),
            "",
        ),
        stuck=stuck,
        hopeless=reason in HOPELESS,
    )


def _state(status: ContainerStatus | None) -> ContainerState:
    return (status.state if status else None) or ContainerState()


def _first_life(status: ContainerStatus | None) -> ContainerState:
    """A Deployment's pods begin their containers anew; whatever runs there then is not the program."""
    before = status.lastState if status else None
    return before if before and before.terminated else _state(status)


def _exit(ended: ContainerStateTerminated) -> tuple[Exit | None, str]:
    """How the program ended, or why it never began. The wrapper's words count; where it has left none, what the kubelet saw."""
    if ended.reason in ("StartError", "ContainerCannotRun"):
        return None, _short(ended.message)
    if ended.reason == "OOMKilled":
        return Exit(None, signal.SIGKILL, oom=True), ""
    if ended.reason == "ContainerStatusUnknown":
        return None, ""
    try:
        told = json.loads(ended.message or "")
        if "errno" in told:
            return Exit(127), os.strerror(int(told["errno"]))
        if told["signal"] is not None:
            return Exit(None, int(told["signal"]), bool(told["oom"])), ""
        return Exit(int(told["code"])), ""
    except (ValueError, TypeError, KeyError, OverflowError):
        # The program may write there too; it lies about itself alone.
        return (Exit(None, ended.exitCode - 128) if ended.exitCode > 128 else Exit(ended.exitCode)), ""


def _last_words(ended: ContainerStateTerminated | None) -> str:
    try:
        words = json.loads((ended.message if ended else "") or "")["last_words"]
        return _short(words) if isinstance(words, str) else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _lost(pod: Pod, silent: bool) -> str:
    """Why the cluster ended it; `silent`: it must have, for the program has not said how it ended."""
    assert pod.status
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"the cluster ended its pod: {_short(condition.message or condition.reason)}"
    if pod.metadata and pod.metadata.deletionTimestamp:
        return "its pod was deleted"
    return f"the cluster ended its pod: {_short(pod.status.message or pod.status.reason)}" if silent else ""


def _stuck(containers: list[ContainerStatus]) -> tuple[str, str]:
    for container in containers:
        waiting = _state(container).waiting
        reason = (waiting.reason if waiting else "") or ""
        # A courier that was killed and starts again is no program that does not start.
        if not waiting or reason in _USUAL or reason == "CrashLoopBackOff":
            continue
        if reason in _PULLS:
            return reason, f"the image {container.image} cannot be pulled: {_short(waiting.message or reason)}"
        return reason, f"its container cannot be made: {_short(waiting.message or reason)}"
    return "", ""


def _short(text: str | None) -> str:
    return " ".join((text or "no reason is given").split())[:400]
