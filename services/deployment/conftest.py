"""The service with stand-ins for those that it asks."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from lepton.accounts.v1 import accounts_service_pb2
from lepton.compute.v1 import allocation_pb2, compute_service_pb2, node_pb2
from lepton.data.v1 import dataset_pb2
from lepton.deployment.v1 import deployment_service_pb2
from lepton.deployment.v1.deployment_service_pb2_grpc import DeploymentServiceStub, add_DeploymentServiceServicer_to_server
from lepton.training.v1 import model_pb2
from libs.db import Database
from libs.db.infrastructure import outbox
from libs.errors import AppError, Conflict, NotFound, QuotaExceeded
from libs.events import Event
from libs.launcher import InMemoryLauncher, InMemoryProcess, Launcher, SubprocessLauncher
from libs.lifecycle import Lifecycle
from libs.modelkit import package as packages
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import fit_table
from libs.modelkit.target import fit_target
from libs.rpc import Client, Server, Signer, Verifier, acting_for, generate_key
from libs.storage import InMemoryArtifactStore
from libs.testing import migrated_database
from services.deployment import repository
from services.deployment.batch_planner import BatchPlanner
from services.deployment.changes import Changes
from services.deployment.handlers.admission import Peers
from services.deployment.node import Node
from services.deployment.reconciler import Reconciler
from services.deployment.resolution import Resolver
from services.deployment.servicer import DeploymentServicer
from services.deployment.settings import Settings

PRIVATE, PUBLIC = generate_key()


@dataclass
class Accounts:
    """Lets a workspace have `limit` endpoints, and a batch prediction of `rows_left` rows."""

    limit: int = 2
    rows_left: int = 1_000_000
    held: set[str] = field(default_factory=set)

    async def ReserveQuota(self, request: Any) -> accounts_service_pb2.ReserveQuotaResponse:
        if request.metric == "predictions":
            return self._reserve_rows(request)
        if len(self.held | {request.reservation}) > self.limit:
            raise QuotaExceeded("the trial plan allows 2 endpoints and 2 are in use")
        self.held.add(request.reservation)
        return accounts_service_pb2.ReserveQuotaResponse(granted=1)

    def _reserve_rows(self, request: Any) -> accounts_service_pb2.ReserveQuotaResponse:
        if request.amount > self.rows_left:
            raise QuotaExceeded(f"the trial plan has {self.rows_left} predictions left this month")
        self.held.add(request.reservation)
        return accounts_service_pb2.ReserveQuotaResponse(granted=request.amount)

    async def ReleaseQuota(self, request: Any) -> None:
        self.held.discard(request.reservation)


@dataclass
class Compute:
    """Grants what is asked for on `node`, but for what `waiting` or `refusal` says."""

    node: str = "n1"
    waiting: str = ""
    refusal: AppError | None = None
    live: dict[str, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    looked: list[list[str]] = field(default_factory=list)
    expired: set[str] = field(default_factory=set)
    renewed: int = 0

    async def ListNodes(self, request: Any, timeout: float = 0) -> compute_service_pb2.ListNodesResponse:
        return compute_service_pb2.ListNodesResponse(nodes=[node_pb2.Node(name="n1", cpu_millis=2000, memory_bytes=8 * 2**30)])

    async def CreateAllocation(self, request: Any) -> allocation_pb2.Allocation:
        if self.refusal:
            raise self.refusal
        self.asked.append(request)
        id = self.live.setdefault(request.holder, f"al-{len(self.asked)}")
        if self.waiting:
            return allocation_pb2.Allocation(id=id, state=allocation_pb2.ALLOCATION_STATE_QUEUED, reason=self.waiting)
        return allocation_pb2.Allocation(id=id, state=allocation_pb2.ALLOCATION_STATE_GRANTED, node=self.node, devices=[3])

    async def BatchGetAllocations(self, request: Any) -> compute_service_pb2.BatchGetAllocationsResponse:
        self.looked.append(list(request.ids))
        state = allocation_pb2.ALLOCATION_STATE_QUEUED if self.waiting else allocation_pb2.ALLOCATION_STATE_GRANTED
        found = [allocation_pb2.Allocation(id=id, state=state, reason=self.waiting) for id in request.ids if id in self.live.values()]
        return compute_service_pb2.BatchGetAllocationsResponse(allocations=found)

    async def RenewAllocation(self, request: Any) -> None:
        self.renewed += 1
        if request.id in self.expired:
            raise Conflict("the allocation is expired", code="allocation_ended")

    async def ReleaseAllocation(self, request: Any, timeout: float = 0) -> None:
        if request.id not in self.live.values():
            raise NotFound("there is no such allocation")
        self.live = {holder: id for holder, id in self.live.items() if id != request.id}


@dataclass
class Training:
    """Has the versions that are put into `models`: "name@n" → files."""

    models: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    signature: model_pb2.Signature | None = None
    kind: dict[str, Any] = field(default_factory=dict)

    async def GetModelVersion(self, request: Any) -> model_pb2.ModelVersion:
        numbers = [int(key.split("@")[1]) for key in self.models if key.split("@")[0] == request.name]
        number = request.number or max(numbers, default=0)
        if number not in numbers:
            raise NotFound(f"there is no model '{request.name}' in this workspace")
        version = model_pb2.ModelVersion(model=request.name, number=number, signature=self.signature, **self.kind)
        for file in self.models[f"{request.name}@{number}"]:
            version.files.add(**file)
        return version


@dataclass
class Data:
    """Has the versions that are put into `versions`, and makes those that are derived: PROCESSING until `ready`."""

    versions: dict[str, dataset_pb2.DatasetVersion] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    ready: bool = True

    async def GetDataset(self, request: Any) -> dataset_pb2.Dataset:
        found = [version for version in self.versions.values() if version.dataset == request.name]
        if not found:
            raise NotFound(f"there is no dataset '{request.name}' in this workspace")
        return dataset_pb2.Dataset(name=request.name, kind=found[0].kind)

    async def GetDatasetVersion(self, request: Any) -> dataset_pb2.DatasetVersion:
        if found := self.versions.get(f"{request.name}@{request.number or 1}"):
            return found
        if request.number > len(self.derived) or not self.derived:
            raise NotFound(f"there is no dataset '{request.name}' in this workspace")
        state = dataset_pb2.VERSION_STATE_READY if self.ready else dataset_pb2.VERSION_STATE_PROCESSING
        return dataset_pb2.DatasetVersion(dataset=request.name, number=request.number, state=state)

    async def CreateDerivedDatasetVersion(self, request: Any, *, idempotency_key: str, timeout: float) -> dataset_pb2.DatasetVersion:
        assert self.derived.setdefault(idempotency_key, request) == request
        number = list(self.derived).index(idempotency_key) + 1
        return dataset_pb2.DatasetVersion(dataset=request.name, number=number, state=dataset_pb2.VERSION_STATE_PROCESSING)


@dataclass
class World:
    """All of it; `launcher` starts processes that answer at once, unless `silent`."""

    database: Database
    accounts: Accounts
    compute: Compute
    training: Training
    launcher: InMemoryLauncher
    store: InMemoryArtifactStore
    settings: Settings
    data: Data = field(default_factory=Data)
    changes: Changes = field(default_factory=Changes)
    silent: bool = False
    healthy: bool = True

    @property
    def peers(self) -> Peers:
        return Peers(self.accounts, self.compute, self.training, self.data)  # type: ignore[arg-type]

    def embedded(self, launcher: Launcher | None = None, **changed: Any) -> "Embedded":
        settings = self.settings.model_copy(update=changed)
        node = self._node(launcher or self.launcher, settings, alone=True)
        return Embedded(node, Reconciler(self.database, self.peers, self.changes, settings, here=node))

    def planner(self, **changed: Any) -> Reconciler:
        """As in a process that runs nothing."""
        return Reconciler(self.database, self.peers, Changes(), self.settings.model_copy(update=changed))

    def node(self, name: str, **changed: Any) -> Node:
        """As in a process of its own, on the node `name`."""
        folder = f"{self.settings.work_dir}-{name}"
        return self._node(self.launcher, self.settings.model_copy(update={"node": name, "work_dir": folder, **changed}), Changes())

    def _node(self, launcher: Launcher, settings: Settings, changes: Changes | None = None, *, alone: bool = False) -> Node:
        compute, probe = self.peers.compute, self._probe
        return Node(self.database, compute, launcher, self.store, changes or self.changes, settings, alone=alone, probe=probe)

    async def _probe(self, host: str, port: int, token: str, seconds: float) -> bool:
        return self.healthy

    async def add_model(self, name: str = "wdbc@1", content: bytes = b"{}") -> None:
        stored = await self.store.put(_one(content))
        self.training.models[name] = [
            {"path": path, "digest": stored.digest, "size_bytes": stored.size} for path in ("model.json", "model.onnx")
        ]

    async def events(self) -> list[tuple[str, Any]]:
        """What was emitted: (name, message)."""
        async with self.database.read() as session:
            rows = (await session.execute(select(outbox).order_by(outbox.c.position))).all()
        messages = [Event.from_headers(row.topic, row.key, row.headers, row.data).message() for row in rows]
        return [(type(message).__name__, message) for message in messages]

    def answer(self, process: InMemoryProcess) -> None:
        """Writes the ready file of a process that was started."""
        if not self.silent:
            words = [str(word) for word in process.launch.argv]
            Path(words[words.index("--ready-file") + 1]).write_text(json.dumps({"host": "127.0.0.1", "port": 40000 + process.pid}))


@dataclass
class Embedded:
    """Both parts in one process; a component."""

    node: Node
    reconciler: Reconciler

    async def start(self) -> None:
        await self.node.start()
        await self.reconciler.start()

    async def stop(self) -> None:
        await self.reconciler.stop()
        await self.node.stop()

    async def crash(self) -> None:
        """Nobody writes anything any more, and the processes live on."""
        await self.reconciler._loop.stop()
        await self.node._loop.stop()
        for run in self.node._runs.values():
            run.task.cancel()
        self.node._folder.close()


async def fail(node: Node) -> None:
    """The node process stops dead: its replicas end with it, and nobody writes anything."""
    await node._loop.stop()
    for run in node._runs.values():
        run.task.cancel()
        if run._process:
            await run._process.stop(0)
    node._folder.close()


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def ship(world: World, folder: Path) -> None:
    """Makes the model package in `folder` the model wdbc@1."""
    stored = {path: await world.store.put_file(path) for path in sorted(folder.iterdir())}  # noqa: ASYNC240
    files = [{"path": path.name, "digest": kept.digest, "size_bytes": kept.size} for path, kept in stored.items()]
    world.training.models["wdbc@1"] = files


def running(world: World) -> Embedded:
    """Its replicas are real processes."""
    node = Node(world.database, world.peers.compute, SubprocessLauncher(), world.store, world.changes, world.settings, alone=True)
    return Embedded(node, Reconciler(world.database, world.peers, world.changes, world.settings, here=node))


async def run_owner(database_url: str, work_dir: str, package: str, socket_folder: str) -> None:
    """A platform with the endpoint wdbc of workspace acme, two replicas; runs until it is killed."""
    async with migrated_database("services.deployment", database_url) as database:
        settings = Settings(work_dir=work_dir)
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        await ship(world, Path(package))
        embedded = running(world)
        await embedded.start()
        async with serving(world, embedded, Path(socket_folder)) as client:
            async with database.read() as session:
                known = await repository.find_endpoint(session, "acme", "wdbc")
            if not known:
                with acting_for("acme"):
                    await client.CreateEndpoint(deployment_service_pb2.CreateEndpointRequest(name="wdbc", model="wdbc@1", replicas=2))
            await asyncio.Event().wait()


async def run_node(database_url: str, work_dir: str, package: str, name: str) -> None:
    """A node process, until SIGTERM."""
    async with migrated_database("services.deployment", database_url) as database:
        settings = Settings(work_dir=work_dir, node=name)
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        await ship(world, Path(package))
        node = Node(database, world.peers.compute, SubprocessLauncher(), world.store, world.changes, settings)
        await Lifecycle([node]).run()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The processes of run_owner and run_node import this file, and need no torch.
    import torch

    from libs.modelkit.export import export

    fitted = fit_table({"a": np.array([1.0, 2.0, 4.0])}, {"a": "double"})
    target = fit_target("y", "double", np.array([10.0, 20.0, 40.0]), classify=False)
    module = torch.nn.Linear(1, 1).double()
    made = Package("regression", "linear", {}, "float64", fitted, target, {}, tmp_path_factory.mktemp("package"))
    packages.write(made, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert export(module, np.ones((2, 1)), made.folder) == ""
    return made.folder


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(work_dir=str(tmp_path / "work"), reconcile_seconds=0.05, route_seconds=0.05, grace_seconds=2.0)
    async with migrated_database("services.deployment") as database:
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        world.launcher.on_start = world.answer
        await world.add_model()
        yield world


@pytest.fixture
async def embedded(world: World) -> AsyncIterator[Embedded]:
    embedded = world.embedded()
    await embedded.start()
    yield embedded
    await embedded.stop()


@pytest.fixture
async def deployment(world: World, embedded: Embedded, tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(world, embedded, tmp_path) as client:
        yield client


class serving:
    """The service behind a socket: the client to it."""

    def __init__(self, world: World, by: Embedded | Reconciler, folder: Path) -> None:
        if isinstance(by, Embedded):
            reconciler, resolver = by.reconciler, Resolver(world.database, world.changes, by.reconciler.wake, by.node.answers)
        else:
            reconciler, resolver = by, Resolver(world.database, Changes(), by.wake)
        self.planner = BatchPlanner(world.database, world.peers, world.settings)
        servicer = DeploymentServicer(world.database, world.peers, reconciler, resolver, self.planner)
        registrations = [(servicer, add_DeploymentServiceServicer_to_server)]
        self._server = Server(f"unix:{folder}/s", registrations, verifier=Verifier(PUBLIC))

    async def __aenter__(self) -> Client:
        await self._server.start()
        self._client = Client(DeploymentServiceStub, self._server.address, Signer(PRIVATE, "gateway"))
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._server.stop(0)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    async def eventually(look: Callable[[], Any], seconds: float = 5.0) -> Any:
        """What `look`, a coroutine function, answers once that is true."""
        async with asyncio.timeout(seconds):
            while not (found := await look()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return found

    return eventually
