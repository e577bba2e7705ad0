"""What this machine has: cores and memory that this process may use, and the devices that drivers report."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml

from lepton.common.v1.resource_pb2 import Accelerator
from lepton.compute.v1.node_pb2 import Device, Node

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def detect(name: str, pool: str) -> Node:
    """This machine as a node. `name` empty: the host's name."""
    return Node(
        name=name or platform.node() or "localhost",
        pool=pool,
        cpu_millis=1000 * _cores(),
        memory_bytes=_memory_bytes(),
        cpu_model=_cpu_model(),
        devices=[*_nvidia_gpus(), *_tpus()],
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return total


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _nvidia_gpus() -> Iterator[Device]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return  # No driver: no devices.
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            yield Device(
                index=index,
                accelerator=Accelerator.ACCELERATOR_GPU,
                model=str(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
    finally:
        pynvml.nvmlShutdown()


def _tpus() -> Iterator[Device]:
    for index, path in enumerate(sorted(Path("/dev").glob("accel[0-9]*"))):
        yield Device(index=index, accelerator=Accelerator.ACCELERATOR_TPU, model=path.name)
