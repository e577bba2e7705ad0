"""The service put together as in main.py, on a database file, with the other services played by objects in memory."""

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lepton.accounts.v1 import accounts_service_pb2 as accounts_pb
from lepton.accounts.v1 import workspace_pb2
from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceServicer
from lepton.common.v1 import resource_pb2
from lepton.compute.v1 import allocation_pb2, compute_service_pb2, node_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import DataServiceServicer
from lepton.deployment.v1 import endpoint_pb2
from lepton.training.v1 import job_pb2, training_service_pb2
from libs.db import Database
from libs.errors import AppError, Conflict, NotFound, QuotaExceeded, Transient
from libs.launcher import SubprocessLauncher
from libs.rpc import current_call
from libs.storage.in_memory import InMemoryArtifactStore
from libs.testing import as_member, migrated_database
from services.training import repository
from services.training.handlers.admission import Peers
from services.training.pulse import Pulse
from services.training.reconciler import Reconciler
from services.training.servicer import TrainingServicer
from services.training.settings import Settings
from services.training.supervisor import Supervisor, Tools
from services.training.supervisor.tools import Stores
from services.training.tables import TrainingJob

COLUMNS = {"a": "DOUBLE", "b": "DOUBLE", "kind": "STRING", "label": "STRING"}


class FakeData(DataServiceServicer):
    """One dataset, wdbc@1: columns a, b (numbers), kind (text), label (two classes), 200 rows."""

    def __init__(self) -> None:
        self.splits: list[dataset_pb2.Split] = []
        self.state = dataset_pb2.VERSION_STATE_READY
        self.rows = 200
        self.figures: dict[str, dict[str, Any]] = {name: {"distinct": 200} for name in "ab"} | {
            "kind": {"distinct": 3},
            "label": {"distinct": 2},
        }

    async def GetDatasetVersion(self, request: Any, context: Any = None, **_: Any) -> dataset_pb2.DatasetVersion:
        if request.name != "wdbc" or request.number not in (0, 1):
            raise NotFound.of("dataset", request.name, ["wdbc"])
        columns = [dataset_pb2.Column(name=name, type=getattr(dataset_pb2, f"COLUMN_TYPE_{kind}")) for name, kind in COLUMNS.items()]
        return dataset_pb2.DatasetVersion(
            dataset="wdbc",
            number=1,
            workspace=current_call().identity.workspace,
            kind=dataset_pb2.DATASET_KIND_TABLE,
            state=self.state,
            columns=columns,
            rows=self.rows,
            splits=self.splits,
        )

    async def GetProfile(self, request: Any, context: Any = None, **_: Any) -> dataset_pb2.Profile:
        columns = [dataset_pb2.ColumnProfile(name=name, **figures) for name, figures in self.figures.items()]
        return dataset_pb2.Profile(rows=self.rows, columns=columns)


class FakeCompute(ComputeServiceServicer):
    """One node of 4 cores and 8 GiB; as many allocations as `room` says. `on_granted` hears of jobs that waited."""

    def __init__(self) -> None:
        self.allocations: dict[str, allocation_pb2.Allocation] = {}
        self.room = 4
        self.asked: list[str] = []
        self.renewals = 0
        self.error: AppError | None = None
        self.on_granted: Callable[[str], Any] = lambda job_id: None

    async def ListNodes(self, request: Any, context: Any = None, **_: Any) -> compute_service_pb2.ListNodesResponse:
        return compute_service_pb2.ListNodesResponse(nodes=[node_pb2.Node(name="n1", cpu_millis=4000, memory_bytes=8 << 30)])

    async def CreateAllocation(self, request: Any, context: Any = None, **_: Any) -> allocation_pb2.Allocation:
        if self.error:
            raise self.error
        self.asked.append(request.holder)
        for allocation in self.allocations.values():
            if allocation.holder == request.holder and allocation.state in (1, 2):
                break
        else:
            allocation = allocation_pb2.Allocation(
                id=f"alloc-{len(self.allocations)}",
                workspace=request.workspace,
                holder=request.holder,
                resources=request.resources,
                state=allocation_pb2.ALLOCATION_STATE_QUEUED,
            )
            self.allocations[allocation.id] = allocation
        if allocation.state == 1 and not self._grant(allocation):
            allocation.reason = "waits for 1 core: all are in use"
        return allocation

    def _grant(self, allocation: allocation_pb2.Allocation) -> bool:
        if len(self.held) >= self.room:
            return False
        allocation.MergeFrom(allocation_pb2.Allocation(state=allocation_pb2.ALLOCATION_STATE_GRANTED, node="n1"))
        allocation.ClearField("reason")
        return True

    async def BatchGetAllocations(self, request: Any, context: Any = None, **_: Any) -> compute_service_pb2.BatchGetAllocationsResponse:
        found = [self.allocations[id] for id in request.ids if id in self.allocations]
        return compute_service_pb2.BatchGetAllocationsResponse(allocations=found)

    async def RenewAllocation(self, request: Any, context: Any = None, **_: Any) -> allocation_pb2.Allocation:
        self.renewals += 1
        allocation = self.allocations[request.id]
        if allocation.state != 2:
            raise Conflict("the allocation is over", code="allocation_ended")
        return allocation

    async def ReleaseAllocation(self, request: Any, context: Any = None, **_: Any) -> allocation_pb2.Allocation:
        allocation = self.allocations[request.id]
        if allocation.state in (1, 2):
            allocation.state = allocation_pb2.ALLOCATION_STATE_RELEASED
        for waiting in self.allocations.values():
            if waiting.state == 1 and self._grant(waiting):
                self.on_granted(waiting.holder.split("/")[1])
        return allocation

    @property
    def held(self) -> list[allocation_pb2.Allocation]:
        return [allocation for allocation in self.allocations.values() if allocation.state == 2]


class FakeAccounts(AccountsServiceServicer):
    """Grants up to `limits`; remembers what is reserved. `on_reserved` is what happens before the caller hears of it."""

    def __init__(self) -> None:
        self.limits = {"concurrent_training_jobs": 100, "cpu_seconds": 10_000_000, "gpu_seconds": 0, "storage_bytes": 1 << 40}
        self.reserved: dict[tuple[str, str], int] = {}
        self.on_reserved: Callable[[], Awaitable[None]] | None = None
        self.away = False

    async def ReserveQuota(self, request: Any, context: Any = None, **_: Any) -> accounts_pb.ReserveQuotaResponse:
        used = sum(amount for (_, metric), amount in self.reserved.items() if metric == request.metric)
        left = self.limits[request.metric] - used
        least = request.at_least if request.HasField("at_least") else request.amount
        if left < least:
            raise QuotaExceeded(f"{request.metric} is used up", meta={"remaining": left, "plans": ["pro"]})
        granted = min(left, request.amount)
        self.reserved[(request.reservation, request.metric)] = granted
        if self.on_reserved:
            await self.on_reserved()
        return accounts_pb.ReserveQuotaResponse(granted=granted, limit=self.limits[request.metric], remaining=left - granted)

    async def GetMe(self, request: Any, context: Any = None, **_: Any) -> accounts_pb.GetMeResponse:
        used = {metric: sum(a for (_, m), a in self.reserved.items() if m == metric) for metric in self.limits}
        quotas = [workspace_pb2.Quota(metric=m, limit=n, used=used[m], remaining=n - used[m]) for m, n in self.limits.items()]
        return accounts_pb.GetMeResponse(quotas=quotas)

    async def ReleaseQuota(self, request: Any, context: Any = None, **_: Any) -> accounts_pb.ReleaseQuotaResponse:
        if self.away:
            raise Transient("accounts cannot be reached; try again in a moment")
        self.reserved = {key: amount for key, amount in self.reserved.items() if key[0] != request.reservation}
        return accounts_pb.ReleaseQuotaResponse()


class FakeDeployment:
    """Knows the endpoints in `serving`, each with its model version."""

    def __init__(self) -> None:
        self.serving: dict[str, str] = {}
        self.away = False

    async def GetEndpoint(self, request: Any, context: Any = None, **_: Any) -> endpoint_pb2.Endpoint:
        if self.away:
            raise Transient("the deployment service cannot be reached; try again in a moment")
        if request.name not in self.serving:
            raise NotFound(f"there is no endpoint '{request.name}'")
        return endpoint_pb2.Endpoint(name=request.name, model=self.serving[request.name])


@dataclass
class Platform:
    """The service and its workers; `submit`, `ended` and `until` drive it."""

    database: Database
    servicer: TrainingServicer
    reconciler: Reconciler
    tools: Tools
    stores: Stores
    data: FakeData
    compute: FakeCompute
    accounts: FakeAccounts
    deployment: FakeDeployment
    workers: list[Supervisor] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)

    async def worker(self, **changes: Any) -> Supervisor:
        supervisor = Supervisor(replace(self.tools, **changes))
        await supervisor.start()
        self.workers.append(supervisor)
        return supervisor

    def hint(self, workspace: str, job_id: str) -> None:
        for worker in self.workers:
            if not worker._stopping:
                task = asyncio.ensure_future(worker.take(workspace, job_id))
                task.add_done_callback(lambda done: done.exception())
                return

    async def submit(self, workspace: str = "acme", key: str = "", **fields: Any) -> job_pb2.TrainingJob:
        with as_member(workspace, key=key, method="CreateTrainingJob"):
            return await self.servicer.CreateTrainingJob(job_request(**fields), None)

    async def job(self, job_id: str, workspace: str = "acme") -> TrainingJob:
        async with self.database.read() as session:
            return await repository.get_job(session, workspace, job_id)

    async def until(self, condition: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
        async with asyncio.timeout(seconds):
            while not (found := await condition()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return found

    async def in_state(self, job_id: str, *states: str, seconds: float = 20) -> TrainingJob:
        async def reached() -> TrainingJob | None:
            job = await self.job(job_id)
            return job if job.state in states else None

        try:
            return await self.until(reached, seconds)
        except TimeoutError:
            job = await self.job(job_id)
            raise AssertionError(f"{job.state}: {job.reason} {job.error} {await self.logs(job_id)}") from None

    async def ended(self, job_id: str, seconds: float = 20) -> TrainingJob:
        return await self.in_state(job_id, "succeeded", "failed", "cancelled", seconds=seconds)

    async def logs(self, job_id: str) -> list[str]:
        with as_member():
            answer = await self.servicer.ListLogs(training_service_pb2.ListLogsRequest(id=job_id, page_size=10_000), None)
        return [line.text for line in answer.logs]

    async def metrics(self, job_id: str) -> list[job_pb2.MetricPoint]:
        with as_member():
            answer = await self.servicer.ListMetrics(training_service_pb2.ListMetricsRequest(id=job_id), None)
        return list(answer.metrics)


def job_request(**fields: Any) -> training_service_pb2.CreateTrainingJobRequest:
    """A classifier of wdbc, but for `fields`."""
    given: dict[str, Any] = {
        "dataset": "wdbc",
        "task": job_pb2.TASK_CLASSIFICATION,
        "target": "label",
        "output_model": "m",
        "model": job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_LINEAR),
    }
    return training_service_pb2.CreateTrainingJobRequest(**{**given, **fields})


# What a played engine begins with: `say` appends to its events.
PROLOGUE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
spec = json.loads((folder / "spec.json").read_text())
events = open(folder / "events.jsonl", "a", buffering=1)
def say(type, **fields):
    events.write(json.dumps({"type": type, "time": time.time(), **fields}) + "\\n")
def step(epoch=1, epochs=3):
    say("progress", phase="train", epoch=epoch, epochs=epochs, step=epoch * 10, loss=1.0 / epoch, rows_per_second=5.0)
    say("metric", name="loss", step=epoch * 10, epoch=epoch, value=1.0 / epoch)
def checkpoint(epoch):
    place = folder / "checkpoints" / f"epoch-{epoch}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"epoch": epoch}))
    say("checkpoint", epoch=epoch, step=epoch * 10, path=f"checkpoints/epoch-{epoch}")
def resumed():
    return json.loads((folder / spec["resume"] / "state.json").read_text())["epoch"] if spec["resume"] else 0
def finish(**result):
    package = folder / "package"
    package.mkdir()
    (package / "weights.safetensors").write_bytes(b"weights")
    (package / "model.json").write_text(json.dumps({"architecture": "linear", "preprocessing": {"kind": "table"}, "signature": {
        "inputs": [{"name": "a", "type": "double", "optional": True, "categories": [], "shape": []}],
        "outputs": [{"name": "prediction", "type": "string", "optional": False, "categories": ["x", "y"], "shape": []}]}}))
    say("result", metrics={"accuracy": 0.9, "broken": None}, training_rows=160, test_rows=40, parameters=6, **result)
    sys.exit(0)
say("heartbeat", phase="start")
"""


@pytest.fixture
def engine(tmp_path: Path) -> Callable[[str], Callable[[str], list[str]]]:
    """engine("step(); finish()") is the command of a run that does just that."""

    def make(program: str) -> Callable[[str], list[str]]:
        script = tmp_path / f"engine-{abs(hash(program))}.py"
        script.write_text(PROLOGUE + textwrap.dedent(program))
        return lambda folder: [sys.executable, "-S", str(script), folder]

    return make


@asynccontextmanager
async def running_platform(tmp_path: Path, **changes: Any) -> AsyncIterator[Platform]:
    settings = Settings(work_dir=str(tmp_path / "work"), reconcile_seconds=0.1, lease_seconds=2.0, allocation_lease_seconds=3, **changes)
    data, compute, accounts, deployment = FakeData(), FakeCompute(), FakeAccounts(), FakeDeployment()
    peers = Peers(data, compute, accounts, deployment)  # type: ignore[arg-type]
    stores = Stores(InMemoryArtifactStore(), InMemoryArtifactStore(), InMemoryArtifactStore())
    spans: list[Any] = []
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(migrated_database("services.training", f"sqlite+aiosqlite:///{tmp_path}/db"))
        tools = Tools(database, peers, stores, SubprocessLauncher(), settings, spans.append, lambda folder: ["false"])
        pulse = Pulse(database)
        platform: Platform
        reconciler = Reconciler(database, peers, lambda workspace, job_id, node: platform.hint(workspace, job_id), settings)
        compute.on_granted = reconciler.wake
        servicer = TrainingServicer(database, peers, reconciler, pulse, stores.models, {"numpy": "2.1"})
        platform = Platform(database, servicer, reconciler, tools, stores, data, compute, accounts, deployment, spans=spans)
        for component in (reconciler, pulse):
            await component.start()
            stack.push_async_callback(component.stop)
        yield platform
        for worker in platform.workers:
            await worker.stop()


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as running:
        yield running


async def watch(platform: Platform, job_id: str, after: str = "") -> list[Any]:
    """Everything a watcher is told until the stream ends."""
    request = training_service_pb2.WatchTrainingJobRequest(id=job_id, after=after)
    with as_member():
        return [event async for event in platform.servicer.WatchTrainingJob(request, None)]


def table_split(folder: Path, rows: int = 400) -> bytes:
    """A Parquet file with the columns of wdbc: label tells the sign of a + b."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    a, b = np.random.default_rng(3).normal(size=(2, rows))
    columns = {"a": a, "b": b, "kind": np.array(["p", "q", "r"])[np.arange(rows) % 3], "label": np.where(a + b > 0, "x", "y")}
    pq.write_table(pa.table(columns), folder / "wdbc.parquet")
    return (folder / "wdbc.parquet").read_bytes()


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def put_split(platform: Platform, data: bytes) -> None:
    stored = await platform.stores.datasets.put(bytes_of(data))
    platform.data.splits = [dataset_pb2.Split(name="all", rows=400, file=resource_pb2.Artifact(digest=stored.digest))]
    platform.data.rows = 400
