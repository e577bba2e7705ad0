"""Replicas that come and go leave nothing in the process that runs them. LEPTON_CYCLES=1000 tries as many."""

import asyncio
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from lepton.deployment.v1 import deployment_service_pb2 as pb
from libs.launcher import InMemoryLauncher
from libs.rpc import acting_for
from libs.storage import InMemoryArtifactStore
from libs.testing import migrated_database
from services.deployment.conftest import Accounts, Compute, Training, World, running, serving, ship
from services.deployment.settings import Settings

CYCLES = int(os.environ.get("LEPTON_CYCLES", "50"))
WARM = 10
# Noise of an allocator is some hundred KiB, whatever the number of cycles.
MOST_BYTES_A_CYCLE = 4 << 10 if CYCLES >= 1000 else 24 << 10
RUN = "import asyncio, sys; from services.deployment.cycles_test import run; asyncio.run(run(*sys.argv[1:]))"


class Held(NamedTuple):
    """Of this process."""

    bytes: int
    descriptors: int
    threads: int
    children: int
    tasks: int
    folders: int

    @classmethod
    def now(cls, work: Path) -> "Held":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        this = psutil.Process()
        folders = len(list((work / "replicas").iterdir()))
        tasks = len(asyncio.all_tasks())
        return cls(this.memory_full_info().uss, this.num_fds(), this.num_threads(), len(this.children(recursive=True)), tasks, folders)


async def run(package: str, folder: str) -> None:
    """Loads a model and drops it, and prints after each time what this process holds."""
    here = Path(folder)
    settings = Settings(work_dir=f"{folder}/work", reconcile_seconds=0.05, route_seconds=0.0, grace_seconds=2.0)
    # The rows are in a file: they are kept for a day.
    async with migrated_database("services.deployment", f"sqlite+aiosqlite:///{folder}/deployment.db") as database:
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        await ship(world, Path(package))
        embedded = running(world)
        await embedded.start()
        async with serving(world, embedded, here) as client:
            with acting_for("acme"):
                for _ in range(WARM + CYCLES):
                    await client.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
                    await client.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=9))
                    await client.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))
                    async with asyncio.timeout(30):
                        while embedded.node._runs or psutil.Process().children():  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                    world.compute.asked.clear()
                    print(json.dumps(Held.now(here / "work")), flush=True)
        await embedded.stop()


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * CYCLES)
def test_loaded_and_unloaded_again_and_again(package: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, package, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    samples = [Held(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")][WARM:]
    assert len(samples) == CYCLES
    slope = float(np.polyfit(range(CYCLES), [held.bytes for held in samples], 1)[0])
    print(f"\n{CYCLES} loads and unloads in {time.monotonic() - began:.0f} s: {slope / 1024:.1f} KiB a cycle")
    for held in samples[:: max(1, CYCLES // 10)]:
        print(held)
    assert slope < MOST_BYTES_A_CYCLE
    for name in ("descriptors", "threads", "children", "tasks", "folders"):
        each = [getattr(held, name) for held in samples]
        assert max(each[CYCLES // 2 :]) <= max(each[: CYCLES // 2]) + 2, (name, each)
