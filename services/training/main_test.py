"""The service and its worker as processes have them: gRPC, a broker, torch, and kill -9 of the engine and of the worker."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lepton.accounts.v1.accounts_service_pb2_grpc import add_AccountsServiceServicer_to_server
from lepton.common.v1 import resource_pb2
from lepton.compute.v1.compute_service_pb2_grpc import add_ComputeServiceServicer_to_server
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import add_DataServiceServicer_to_server
from lepton.training.v1 import job_pb2
from lepton.training.v1 import training_service_pb2 as pb
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceStub
from libs.errors import Conflict, NotFound
from libs.launcher import SubprocessLauncher
from libs.rpc import Client, Server, Signer, Verifier, acting_for, generate_key
from libs.storage import open_store
from libs.tasks.valkey import ValkeyBroker
from libs.testing import database_environment, database_settings
from services.training.conftest import FakeAccounts, FakeCompute, FakeData, bytes_of, job_request, table_split
from services.training.main import build
from services.training.settings import Settings

ENDED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


@dataclass
class Running:
    client: Client
    environment: dict[str, str]
    compute: FakeCompute
    worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "services.training.main", "worker"]
        self.worker = subprocess.Popen(command, env={**os.environ, **self.environment}, start_new_session=True)

    def stop_worker(self, number: int) -> None:
        if self.worker:
            self.worker.send_signal(number)
            self.worker.wait(15)
            self.worker = None

    async def watch(self, job_id: str) -> AsyncIterator[Any]:
        async for event in self.client.WatchTrainingJob(pb.WatchTrainingJobRequest(id=job_id)):
            yield event

    async def until(self, job_id: str, *states: int) -> job_pb2.TrainingJob:
        async for event in self.watch(job_id):
            if event.HasField("job") and event.job.state in states:
                return event.job
        raise AssertionError(f"the stream ended without {states}")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    private, public = generate_key()
    data, compute, accounts = FakeData(), FakeCompute(), FakeAccounts()
    peers = Server(
        f"unix:{tmp_path}/peers",
        [
            (data, add_DataServiceServicer_to_server),
            (compute, add_ComputeServiceServicer_to_server),
            (accounts, add_AccountsServiceServicer_to_server),
        ],
        verifier=Verifier(public),
    )
    broker = ValkeyBroker(SubprocessLauncher(), tmp_path / "broker.log")
    await broker.start()
    options = {
        "LISTEN": f"unix:{tmp_path}/training",
        "EVENTS__URL": f"sqlite:///{tmp_path}/events.db",
        "STORAGE__URL": f"file://{tmp_path}/artifacts",
        "IDENTITY__PRIVATE_KEY": private,
        "PEERS__DATA": peers.address,
        "PEERS__COMPUTE": peers.address,
        "PEERS__ACCOUNTS": peers.address,
        "TASKS_URL": broker.url,
        "WORK_DIR": str(tmp_path / "work"),
        "ALLOCATION_LEASE_SECONDS": "6",
        "LEASE_SECONDS": "3",
        "TELEMETRY_URL": f"sqlite:///{tmp_path}/traces.db",
    }
    environment = {f"LEPTON_TRAINING_{name}": value for name, value in options.items()}
    environment |= database_environment("LEPTON_TRAINING_", await database_settings(f"sqlite+aiosqlite:///{tmp_path}/training.db"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = Settings()
    stored = await open_store(settings.storage, "datasets").put(bytes_of(table_split(tmp_path)))
    data.splits = [dataset_pb2.Split(name="all", rows=400, file=resource_pb2.Artifact(digest=stored.digest))]
    service = build(settings)
    client = Client(TrainingServiceStub, settings.listen, Signer(private, "gateway"))
    await peers.start()
    await service.start()
    running = Running(client, environment, compute)
    running.start_worker()
    await asyncio.sleep(2.5)  # So that what is measured is not the worker's start.
    with acting_for("acme", "ada@acme.test"):
        yield running
    running.stop_worker(signal.SIGTERM)
    await client.close()
    await service.stop()
    await peers.stop(0)
    await broker.stop()


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = task.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(task.parent.name))
    return found + [below for child in found for below in children_of(child)]


def engines_of(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes that train, without those that keep them."""
    return [pid for pid in children_of(worker.pid) if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1] == b"-m"]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_from_submit_to_model_in_one_trace_and_soon(running: Running) -> None:
    began = time.monotonic()
    job = await running.client.CreateTrainingJob(job_request(training=job_pb2.TrainingSpec(epochs=3, seed=7, learning_rate=0.1)))
    answered = time.monotonic() - began
    started = await running.until(job.id, job_pb2.JOB_STATE_RUNNING)
    stepped = time.monotonic() - began
    ended = await running.until(job.id, *ENDED)
    print(f"\nanswer {answered:.3f} s, first step seen {stepped:.3f} s, ended {time.monotonic() - began:.3f} s")
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    assert ended.metrics["accuracy"] > 0.8
    version = await running.client.GetModelVersion(pb.GetModelVersionRequest(name="m"))
    assert (version.number, version.trace_id, version.test_rows) == (1, job.trace_id, 80)
    assert {file.path for file in version.files} >= {"model.json", "weights.safetensors"}
    assert started.first_step_time.ToMicroseconds() > job.create_time.ToMicroseconds()
    with acting_for("other"), pytest.raises(NotFound):
        await running.client.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id))
    warm = job_request(model=job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_LINEAR, init="m@1"))
    assert (await running.until((await running.client.CreateTrainingJob(warm)).id, *ENDED)).model_version == "m@2"
    with pytest.raises(Conflict, match="has succeeded already"):
        await running.client.CancelTrainingJob(pb.CancelTrainingJobRequest(id=job.id))


async def test_kill_9_of_engine_and_worker_and_a_cancel(running: Running) -> None:
    training = job_pb2.TrainingSpec(epochs=60_000, seed=7, batch_size=16)
    job = await running.client.CreateTrainingJob(job_request(training=training, output_model="long"))

    async def epoch_reached(number: int) -> None:
        async for event in running.watch(job.id):
            if event.HasField("metric") and event.metric.epoch >= number:
                return

    await epoch_reached(50)
    await asyncio.sleep(1.5)
    assert running.worker
    [engine] = engines_of(running.worker)
    os.kill(engine, signal.SIGKILL)
    await asyncio.sleep(2)

    async def attempt(number: int) -> job_pb2.TrainingJob:
        while True:
            now = await running.client.GetTrainingJob(pb.GetTrainingJobRequest(id=job.id))
            if now.attempts == number and now.state == job_pb2.JOB_STATE_RUNNING:
                return now
            assert now.state not in ENDED, now
            await asyncio.sleep(0.05)

    async with asyncio.timeout(30):
        await attempt(2)
    [engine] = engines_of(running.worker)
    running.stop_worker(signal.SIGKILL)
    running.start_worker()
    async with asyncio.timeout(40):
        await attempt(3)
    assert not alive(engine)
    logs = await running.client.ListLogs(pb.ListLogsRequest(id=job.id, page_size=1000))
    resumed = [line.text for line in logs.logs if "resumed after epoch" in line.text]
    assert len(resumed) == 2, logs
    metrics = await running.client.ListMetrics(pb.ListMetricsRequest(id=job.id, name="loss", page_size=10_000))
    epochs = [point.epoch for point in metrics.metrics]
    assert epochs == sorted(set(epochs))
    [engine] = engines_of(running.worker)
    began = time.monotonic()
    await running.client.CancelTrainingJob(pb.CancelTrainingJobRequest(id=job.id))
    while alive(engine):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    gone = time.monotonic() - began
    assert (await running.until(job.id, *ENDED)).state == job_pb2.JOB_STATE_CANCELLED
    print(f"\nprocess gone {gone:.3f} s after cancel")
    assert gone < 2
