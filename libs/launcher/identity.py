"""Which process a process id meant: ids are used again, births are not, and each container counts its own."""

import os
import secrets
import signal
import socket
import sys
import uuid
from functools import cache
from pathlib import Path

import psutil


def handle_of(pid: int) -> str:
    """A durable name of the process that `pid` means now; one without a birth if it is gone already."""
    return f"{pid}:{_birth(pid)}"


def pid_of(handle: str) -> int | None:
    """The process id, if the very process that the handle was made for still runs."""
    number, _, birth = handle.partition(":")
    return int(number) if number.isdigit() and birth and _birth(int(number)) == birth and runs(int(number)) else None


def runs_still(handle: str) -> bool:
    """Whether the very process that the handle was made for still runs."""
    return pid_of(handle) is not None


def signature() -> str:
    """Names this process among all that work on one database, whatever machine or container they are in; see `is_known_dead`."""
    return f"{_space()}/{handle_of(os.getpid())}"


def is_known_dead(signature: str) -> bool:
    """Whether the process that signed (more may follow a slash) has surely ended. Other machines' and containers' are not judged."""
    space, handle = (*signature.split("/"), "")[:2]
    return space == _space() and not runs_still(handle)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.Error:
        return False


def kill_group(pid: int) -> None:
    """SIGKILL to the group that `pid` leads; one that is gone is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _birth(pid: int) -> str:
    if sys.platform != "linux":
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return ""
    try:
        # Clock ticks from the machine's start to the process's; psutil's create_time moves when the clock is set.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{ticks}:{_boot()}"


@cache
def _space() -> str:
    """Within which a process id means one process: a machine since its start, and a container of it. Host names may be given twice."""
    if sys.platform != "linux":
        return f"{socket.gethostname()}-{uuid.getnode():x}"
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        namespace = secrets.token_hex(8)  # Nobody is judged then.
    return f"{socket.gethostname()}-{_boot()}-{namespace}"


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
