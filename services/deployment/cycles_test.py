"""Replicas that come and go leave nothing in the process that runs them. LEPTON_CYCLES=1000 tries as many."""

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

from lepton.deployment.v1 import deployment_service_pb2 as pb
from libs.errors import AppError
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
Eventually = Callable[..., Any]


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


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Its rows are in a file: they are kept for a day."""
    settings = Settings(work_dir=str(tmp_path / "work"), reconcile_seconds=0.05, route_seconds=0.0, grace_seconds=2.0)
    async with migrated_database("services.deployment", f"sqlite+aiosqlite:///{tmp_path}/deployment.db") as database:
        yield World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * CYCLES)
async def test_loaded_and_unloaded_again_and_again(world: World, package: Path, tmp_path: Path, eventually: Eventually) -> None:
    await ship(world, package)
    embedded, samples = running(world), []
    await embedded.start()
    began = time.monotonic()
    async with serving(world, embedded, tmp_path) as client:

        async def gone() -> bool:
            try:
                await client.GetEndpoint(pb.GetEndpointRequest(name="wdbc"))
            except AppError:
                return not embedded.node._runs and not psutil.Process().children()
            return False

        for _ in range(CYCLES + WARM):
            with acting_for("acme"):
                await client.CreateEndpoint(pb.CreateEndpointRequest(name="wdbc", model="wdbc@1"))
                await client.ResolveEndpoint(pb.ResolveEndpointRequest(workspace="acme", name="wdbc", wait_seconds=9))
                await client.DeleteEndpoint(pb.DeleteEndpointRequest(name="wdbc"))
                await eventually(gone, 30)
            world.compute.asked.clear()
            samples.append(Held.now(tmp_path / "work"))
    await embedded.stop()
    samples = samples[WARM:]
    slope = float(np.polyfit(range(CYCLES), [held.bytes for held in samples], 1)[0])
    print(f"\n{CYCLES} loads and unloads in {time.monotonic() - began:.0f} s: {slope / 1024:.1f} KiB a cycle")
    for held in (samples[0], samples[CYCLES // 2], samples[-1]):
        print(held)
    assert slope < MOST_BYTES_A_CYCLE
    for name in ("descriptors", "threads", "children", "tasks", "folders"):
        each = [getattr(held, name) for held in samples]
        assert max(each[CYCLES // 2 :]) <= max(each[: CYCLES // 2]), (name, each)
