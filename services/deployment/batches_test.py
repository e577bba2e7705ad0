"""Batch predictions: each row once whatever dies, refused in words, billed once, and nothing held at their end."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from lepton.data.v1 import dataset_pb2
from lepton.deployment.v1 import batch_prediction_pb2 as batch_pb2
from lepton.deployment.v1 import deployment_service_pb2 as pb
from lepton.training.v1 import job_pb2, model_pb2
from libs.errors import AppError, Conflict, Invalid, NotFound, QuotaExceeded
from libs.launcher import Exit, InMemoryLauncher, InMemoryProcess, Launcher, SubprocessLauncher
from libs.modelkit import custom, guest
from libs.modelkit.runtime import Runtime
from libs.modelkit.signature import Field as SignatureField
from libs.modelkit.signature import Signature
from libs.rpc import Client, acting_for
from libs.storage import ArtifactStore, InMemoryArtifactStore, LocalArtifactStore
from libs.testing import migrated_database
from services.deployment.batch_planner import BatchPlanner, PartSweep
from services.deployment.batch_worker import BatchWorker, Stores
from services.deployment.conftest import Accounts, Compute, Embedded, Training, World, serving, ship
from services.deployment.domain.batch import BatchState
from services.deployment.engine.conftest import table
from services.deployment.handlers import batches as handlers
from services.deployment.handlers.batches import Lease, LeaseLost
from services.deployment.replica.conftest import numbers, runtime
from services.deployment.settings import Settings
from services.deployment.tables import BatchPrediction, PredictedPart

__all__ = ["numbers", "runtime"]
Eventually = Callable[..., Any]
TYPES = {"id": dataset_pb2.COLUMN_TYPE_INTEGER, "a": dataset_pb2.COLUMN_TYPE_DOUBLE, "b": dataset_pb2.COLUMN_TYPE_STRING}


class Batches:
    """The service with a worker, and what it works with."""

    def __init__(self, world: World, folder: Path | None = None) -> None:
        """`folder`: where others find what is stored."""
        self.world = world
        stores = [LocalArtifactStore(folder / name) if folder else InMemoryArtifactStore() for name in ("datasets", "parts")]
        self.datasets: ArtifactStore = stores[0]
        self.parts: ArtifactStore = stores[1]
        self.client: Client
        self.planner: BatchPlanner

    def worker(self, embedded: Embedded, launcher: Launcher | None = None) -> BatchWorker:
        world, node = self.world, embedded.node
        stores = Stores(self.datasets, self.parts)
        return BatchWorker(world.database, world.peers, launcher or world.launcher, stores, node.packages, node.batches, world.settings)

    async def add_dataset(self, name: str, splits: dict[str, pa.Table], types: dict[str, Any] | None = None) -> None:
        version = dataset_pb2.DatasetVersion(
            dataset=name, number=1, state=dataset_pb2.VERSION_STATE_READY, rows=sum(t.num_rows for t in splits.values())
        )
        version.kind = dataset_pb2.DATASET_KIND_TABLE
        for split, rows in splits.items():
            content = io.BytesIO()
            pq.write_table(rows, content)
            stored = await self.datasets.put(_one(content.getvalue()))
            version.splits.add(name=split, rows=rows.num_rows).file.digest = stored.digest
        for column, kind in (types or TYPES).items():
            version.columns.add(name=column, type=kind, nullable=column == "b")
        self.world.data.versions[f"{name}@1"] = version

    async def create(self, **changed: Any) -> batch_pb2.BatchPrediction:
        request = pb.CreateBatchPredictionRequest(**{"model": "wdbc@1", "dataset": "rows@1", "output": "answers", **changed})
        with acting_for("acme"):
            made: batch_pb2.BatchPrediction = await self.client.CreateBatchPrediction(request)
        return made

    async def get(self, id: str) -> batch_pb2.BatchPrediction:
        with acting_for("acme"):
            found: batch_pb2.BatchPrediction = await self.client.GetBatchPrediction(pb.GetBatchPredictionRequest(id=id))
        return found

    async def cancel(self, id: str) -> batch_pb2.BatchPrediction:
        with acting_for("acme"):
            found: batch_pb2.BatchPrediction = await self.client.CancelBatchPrediction(pb.CancelBatchPredictionRequest(id=id))
        return found

    async def row(self, id: str) -> BatchPrediction:
        async with self.world.database.read() as session:
            return await session.get_one(BatchPrediction, id)

    async def ended(self, eventually: Eventually, id: str, state: int) -> batch_pb2.BatchPrediction:
        """Once it has, and holds nothing."""

        async def look() -> batch_pb2.BatchPrediction | None:
            found, row = await self.get(id), await self.row(id)
            return found if found.state == state and not (row.allocation_id or row.quota_held) else None

        found: batch_pb2.BatchPrediction = await eventually(look, seconds=30)
        assert not self.world.compute.live
        assert not self.world.accounts.held
        return found

    async def served(self) -> list[int]:
        return [message.rows for name, message in await self.world.events() if name == "PredictionsServed"]

    async def result(self, id: str) -> list[dict[str, Any]]:
        """The rows of the parts that data was given."""
        tables = []
        for part in self.world.data.derived[id].parts:
            content = b"".join([chunk async for chunk in self.datasets.open(part.digest)])
            tables.append(pq.read_table(io.BytesIO(content)))
        return [row for rows in tables for row in rows.to_pylist()]


async def run_platform(database_url: str, folder: str, package: str) -> None:
    """Service and worker, until they are killed."""
    root = Path(folder)
    async with migrated_database("services.deployment", database_url) as database:
        settings = Settings(work_dir=str(root / "work"), reconcile_seconds=0.05, poll_seconds=0.02, owner_lease_seconds=1.0)
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        await ship(world, Path(package))
        async with running(Batches(world, root), root, SubprocessLauncher()):
            await asyncio.Event().wait()


PLATFORM = "import asyncio, sys; from services.deployment.batches_test import run_platform; asyncio.run(run_platform(*sys.argv[1:]))"


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@asynccontextmanager
async def running(batches: Batches, folder: Path, launcher: Launcher | None = None) -> AsyncIterator[BatchWorker]:
    world = batches.world
    embedded = world.embedded()
    worker = batches.worker(embedded, launcher)
    by = serving(world, embedded, folder)
    await embedded.start()
    await worker.start()
    await by.planner.start()
    async with by as client:
        batches.client, batches.planner = client, by.planner
        yield worker
    await by.planner.stop()
    await worker.stop()
    await embedded.stop()


@pytest.fixture
async def batches(world: World, runtime: Runtime) -> Batches:
    await ship(world, runtime.package.folder)
    world.training.signature = _signature(runtime.signature)
    world.settings = world.settings.model_copy(update={"batch_part_rows": 1000, "poll_seconds": 0.02, "owner_lease_seconds": 3.0})
    found = Batches(world)
    await found.add_dataset("rows", {"train": table(2500), "test": table(700)})
    return found


def _signature(given: Signature) -> model_pb2.Signature:
    signature = model_pb2.Signature()
    for side in ("inputs", "outputs"):
        for field in getattr(given, side):
            kind = model_pb2.FieldType.Value(f"FIELD_TYPE_{field.type.upper()}")
            more = {"optional": field.optional, "categories": field.categories, "shape": field.shape}
            getattr(signature, side).add(name=field.name, type=kind, **more)
    return signature


async def test_every_row_once_in_order_billed_once_and_registered_once(
    batches: Batches, runtime: Runtime, tmp_path: Path, eventually: Eventually
) -> None:
    async with running(batches, tmp_path, SubprocessLauncher()):
        made = await batches.create()
        assert (made.rows, made.rows_done, made.dataset, made.model) == (3200, 0, "rows@1", "wdbc@1")
        done = await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED)
    assert (done.rows_done, done.output_version, done.attempts) == (3200, 1, 1)
    assert await batches.served() == [1000, 1000, 500, 700]
    request = batches.world.data.derived[made.id]
    assert [part.path for part in request.parts] == ["train", "train", "train", "test"]
    assert [column.name for column in request.columns] == ["id", "a", "b", "prediction", "probability_no", "probability_yes"]
    assert (request.source, request.model, request.batch_prediction) == ("rows@1", "wdbc@1", made.id)
    records = [row for rows in (table(2500), table(700)) for row in rows.to_pylist()]
    expected = runtime.predict_records([{"a": record["a"], "b": record["b"]} for record in records])
    found = await batches.result(made.id)
    assert [row["id"] for row in found] == [record["id"] for record in records]
    assert [row["prediction"] for row in found] == [answer["prediction"] for answer in expected]


class Staged:
    """Stands in for the engine: writes so many parts a process, then ends as told; no exit: it goes on for ever."""

    def __init__(self, *stages: tuple[int, Exit | None]) -> None:
        self.stages = list(stages)
        self.asked: list[list[int]] = []

    def __call__(self, process: InMemoryProcess) -> None:
        folder = process.launch.cwd
        assert folder
        spec = json.loads((folder / "spec.json").read_bytes())
        self.asked.append([part["number"] for part in spec["parts"]])
        count, exit = self.stages.pop(0)
        (folder / "parts").mkdir()
        for number in self.asked[-1][:count]:
            (folder / "parts" / f"{number:06d}.parquet").write_bytes(b"part %d" % number)
        (folder / "parts" / "000009.parquet.part").write_bytes(b"half")
        if exit:
            process.exit(exit)


async def test_a_process_that_dies_costs_the_part_in_hand(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    staged = Staged((2, Exit(None, 9)), (1, Exit(1)), (1, Exit(0)))
    batches.world.launcher.on_start = staged
    async with running(batches, tmp_path):
        made = await batches.create()
        done = await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED)
    assert staged.asked == [[0, 1, 2, 3], [2, 3], [3]]
    assert done.attempts == 3
    assert await batches.served() == [1000, 1000, 500, 700]
    assert len(batches.world.data.derived) == 1


async def test_processes_that_die_without_a_part_end_it(batches: Batches, tmp_path: Path) -> None:
    async with serving(batches.world, batches.world.planner(), tmp_path) as client:
        batches.client = client
        made = await batches.create()
    database, where = batches.world.database, {"workspace": "acme", "id": made.id}
    for attempt in range(1, 5):
        now = 1e10 + 100 * attempt
        async with database.unit() as unit:
            await handlers.note_allocation(unit, **where, allocation_id="al-1", node="n1", reason="")
            assert await handlers.claim(unit, **where, node="n1", holder="w", expires=now, now=now)
        async with database.unit() as unit:
            await handlers.put_back(unit, Lease("acme", made.id, attempt), "its process ended: exit code 1", now, failed=True)
        row = await batches.row(made.id)
        assert row.state == (BatchState.FAILED if attempt == 4 else BatchState.QUEUED)
        assert row.not_before == now + 2 ** (attempt - 1)
        async with database.unit() as unit:
            assert not await handlers.claim(unit, **where, node="n1", holder="w", expires=now, now=now)
        with pytest.raises(LeaseLost):
            async with database.unit() as unit:
                await handlers.put_back(unit, Lease("acme", made.id, attempt), "told twice", now, failed=True)
    assert "4 times in a row: its process ended: exit code 1" in row.reason


async def test_what_the_engine_refuses_is_said_and_not_tried_again(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    rows = table(10).set_column(1, "a", pa.array([float("inf")] * 10))
    await batches.add_dataset("endless", {"all": rows})
    async with running(batches, tmp_path, SubprocessLauncher()):
        made = await batches.create(dataset="endless")
        done = await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_FAILED)
    assert done.error.code == "invalid_data"
    assert "row 1 has an infinite 'a'" in done.error.detail
    assert done.attempts == 1


async def test_cancel_ends_the_process_and_gives_back_what_it_holds(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    batches.world.launcher.on_start = Staged((1, None))
    async with running(batches, tmp_path):
        made = await batches.create()

        async def under_way() -> bool:
            return (await batches.get(made.id)).rows_done == 1000

        await eventually(under_way)
        assert (await batches.cancel(made.id)).state == batch_pb2.BATCH_PREDICTION_STATE_CANCELLING
        done = await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_CANCELLED)
        assert (await batches.cancel(made.id)).state == batch_pb2.BATCH_PREDICTION_STATE_CANCELLED
    assert batches.world.launcher.processes[0].stopped
    assert done.rows_done == 1000
    assert await batches.served() == [1000]


async def test_one_that_waits_says_for_what_and_is_cancelled_at_once(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    batches.world.compute.waiting = "waits for 1 core"
    async with running(batches, tmp_path):
        made = await batches.create()

        async def waits() -> bool:
            return (await batches.get(made.id)).reason == "waits for 1 core"

        await eventually(waits)
        assert (await batches.cancel(made.id)).state == batch_pb2.BATCH_PREDICTION_STATE_CANCELLED
        await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_CANCELLED)
    assert not batches.world.launcher.processes


async def test_all_that_wait_are_asked_about_at_once(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    compute = batches.world.compute
    compute.waiting = "waits for 1 core"
    async with running(batches, tmp_path):
        made = [(await batches.create(output=f"answers-{number}")).id for number in range(3)]

        async def wait() -> bool:
            return {(await batches.get(id)).reason for id in made} == {compute.waiting}

        await eventually(wait)
        ids = {(await batches.row(id)).allocation_id for id in made}
        assert len(compute.asked) == 3

        async def is_looked_after() -> bool:
            return len(compute.looked) > 1

        for reason, asked in (("waits for 1 core", 3), ("waits: others are before it", 6), ("waits: others are before it", 6)):
            compute.waiting = reason
            compute.looked.clear()
            batches.planner.wake()
            await eventually(wait)
            await eventually(is_looked_after)
            assert {frozenset(looked) for looked in compute.looked} == {frozenset(ids)}
            assert len(compute.asked) == asked
        # One is lost, and asked for anew without a word of the others.
        compute.live.popitem()
        batches.planner.wake()

        async def is_asked_for() -> bool:
            return len(compute.live) == 3

        await eventually(is_asked_for)
        assert len(compute.asked) == 7


async def test_a_lost_worker_is_buried_and_the_next_goes_on(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    staged = Staged((3, None), (1, Exit(0)))
    batches.world.launcher.on_start = staged
    async with running(batches, tmp_path) as worker:
        made = await batches.create()

        async def under_way() -> bool:
            return (await batches.get(made.id)).rows_done == 2500

        await eventually(under_way)
        # Killed: nobody writes anything any more.
        task = worker._runs[made.id]
        worker._put_back = _nothing  # type: ignore[method-assign]
        task.cancel()
        await asyncio.wait([task])
        await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED)
    assert staged.asked == [[0, 1, 2, 3], [3]]
    assert await batches.served() == [1000, 1000, 500, 700]


async def _nothing(*_: Any, **__: Any) -> None:
    return None


async def test_an_allocation_that_is_over_is_asked_for_again(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    world = batches.world
    world.settings = world.settings.model_copy(update={"allocation_lease_seconds": 1})
    staged = Staged((1, None), (3, Exit(0)))
    world.launcher.on_start = staged
    async with running(batches, tmp_path):
        made = await batches.create()

        async def under_way() -> bool:
            return (await batches.get(made.id)).rows_done == 1000

        await eventually(under_way)
        world.compute.expired |= set(world.compute.live.values())
        world.compute.live.clear()
        await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED)
    assert staged.asked == [[0, 1, 2, 3], [1, 2, 3]]


async def test_a_version_that_cannot_be_made_says_why(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    batches.world.launcher.on_start = Staged((4, Exit(0)))
    failed = dataset_pb2.DatasetVersion(dataset="answers", number=1, state=dataset_pb2.VERSION_STATE_FAILED)
    failed.error.code, failed.error.detail = "quota_exceeded", "no storage is left"
    batches.world.data.versions["answers@1"] = failed
    async with running(batches, tmp_path):
        made = await batches.create()
        done = await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_FAILED)
    assert (done.error.code, done.error.detail) == ("quota_exceeded", "no storage is left")


SUMS = """
class Model:
    def predict(self, records):
        if any(record["a"] > 9 for record in records):
            raise ValueError("it is too much")
        return [{"total": record["a"] + len(record["b"] or ""), "both": [record["a"], 1.0]} for record in records]
"""


def written(folder: Path, shape: tuple[int, ...]) -> Signature:
    """A package of a class of one's own."""
    signature = Signature(
        (SignatureField("a", "double", shape=shape), SignatureField("b", "string", optional=True)),
        (SignatureField("total", "double"), SignatureField("both", "double", shape=(2,))),
    )
    folder.mkdir()
    (folder / "model.py").write_text(SUMS)
    (folder / "signature.json").write_text(json.dumps(signature.as_json()))
    (folder / "model.json").write_text(json.dumps(custom.describe(folder)))
    return signature


async def bring(batches: Batches, folder: Path, *, shape: tuple[int, ...] = ()) -> None:
    """Makes it the model wdbc@1."""
    batches.world.training.signature = _signature(written(folder, shape))
    batches.world.training.kind = {"source": model_pb2.MODEL_SOURCE_UPLOADED}
    await ship(batches.world, folder)


async def test_a_model_that_was_brought_answers_every_row_once(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    await bring(batches, tmp_path / "m")
    await batches.add_dataset("large", {"all": table(10).set_column(1, "a", pa.array([1.0] * 9 + [10.0]))})
    state = batch_pb2.BATCH_PREDICTION_STATE_FAILED if guest.lacking() else batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED
    async with running(batches, tmp_path, SubprocessLauncher()):
        done = await batches.ended(eventually, (await batches.create()).id, state)
        refused = await batches.create(dataset="large", output="more")
        refused = await batches.ended(eventually, refused.id, batch_pb2.BATCH_PREDICTION_STATE_FAILED)
    words = "Landlock" if guest.lacking() else "row 10 has no answer: The model's code failed: ValueError: it is too much"
    assert words in refused.error.detail
    assert refused.attempts == 1
    if guest.lacking():
        return
    assert await batches.served() == [1000, 1000, 500, 700]
    request = batches.world.data.derived[done.id]
    assert [column.name for column in request.columns] == ["id", "a", "b", "total", "both_0", "both_1"]
    records = [row for rows in (table(2500), table(700)) for row in rows.to_pylist()]
    added = [{"total": row["a"] + len(row["b"] or ""), "both_0": row["a"], "both_1": 1.0} for row in records]
    assert await batches.result(done.id) == [row | more for row, more in zip(records, added, strict=True)]


async def test_a_model_that_takes_lists_reads_no_columns(batches: Batches, tmp_path: Path) -> None:
    await bring(batches, tmp_path / "m", shape=(3,))
    async with running(batches, tmp_path):
        with pytest.raises(Invalid, match="'a' takes 3 values a row, and a column holds one"):
            await batches.create()
    assert not batches.world.accounts.held


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"model": "wdbx"}, NotFound, "there is no model 'wdbx'"),
        ({"model": "WDBC"}, Invalid, "is no model"),
        ({"dataset": "rowz"}, NotFound, "there is no dataset 'rowz'"),
        ({"dataset": "rows@0"}, Invalid, "'rows@0' is no dataset"),
        ({"columns": ["idd"]}, Invalid, "the dataset has no column 'idd'; did you mean 'id'?"),
        ({"columns": ["id", "id"]}, Invalid, "'id' is named twice"),
        ({"dataset": "short"}, Invalid, "short@1 has no column 'a', which the model reads"),
        ({"dataset": "texts"}, Invalid, "'a' of texts@1 is string, and the model reads double"),
        ({"dataset": "again"}, Invalid, "there is a column 'prediction' already; leave it out by naming the others in columns"),
        ({"resources": {"accelerator": "ACCELERATOR_GPU"}}, Invalid, "batch predictions compute on cores"),
        ({"resources": {"memory_bytes": 2**40}}, Invalid, "no node has"),
    ],
)
async def test_what_cannot_be_is_refused_in_words_before_anything_is_held(
    batches: Batches, tmp_path: Path, change: dict[str, Any], kind: type[AppError], words: str
) -> None:
    rows = pa.table({"id": [1]})
    integer, string = dataset_pb2.COLUMN_TYPE_INTEGER, dataset_pb2.COLUMN_TYPE_STRING
    await batches.add_dataset("short", {"all": rows}, {"id": integer, "b": string})
    await batches.add_dataset("texts", {"all": rows}, {"a": string, "b": string})
    await batches.add_dataset("again", {"all": rows}, {**TYPES, "prediction": string})
    async with running(batches, tmp_path):
        with pytest.raises(kind) as refused:
            await batches.create(**change)
    assert words in refused.value.detail
    assert not batches.world.accounts.held


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"source": model_pb2.MODEL_SOURCE_UPLOADED}, "does not say which columns it takes and gives"),
        ({"task": job_pb2.TASK_TEXT_GENERATION}, "writes texts"),
    ],
)
async def test_models_that_no_batch_goes_through_are_refused(batches: Batches, tmp_path: Path, kind: dict[str, Any], words: str) -> None:
    batches.world.training.kind, batches.world.training.signature = kind, None
    async with running(batches, tmp_path):
        with pytest.raises(Invalid, match=f"wdbc@1 {words}"):
            await batches.create()
    assert not batches.world.accounts.held


async def test_rows_beyond_the_quota_are_refused_and_nothing_is_left(batches: Batches, tmp_path: Path) -> None:
    batches.world.accounts.rows_left = 3199
    async with running(batches, tmp_path):
        with pytest.raises(QuotaExceeded):
            await batches.create()
    async with batches.world.database.read() as session:
        assert not (await session.execute(select(BatchPrediction))).all()


async def test_lists_and_other_workspaces(batches: Batches, tmp_path: Path) -> None:
    batches.world.compute.waiting = "waits"
    async with running(batches, tmp_path):
        made = [(await batches.create()).id for _ in range(3)]
        with acting_for("acme"):
            first = await batches.client.ListBatchPredictions(pb.ListBatchPredictionsRequest(page_size=2))
            rest = await batches.client.ListBatchPredictions(pb.ListBatchPredictionsRequest(page_token=first.next_page_token))
        assert [batch.id for batch in (*first.batch_predictions, *rest.batch_predictions)] == made[::-1]
        with acting_for("other"):
            assert not (await batches.client.ListBatchPredictions(pb.ListBatchPredictionsRequest())).batch_predictions
            with pytest.raises(NotFound):
                await batches.client.GetBatchPrediction(pb.GetBatchPredictionRequest(id=made[0]))
            with pytest.raises(NotFound):
                await batches.client.CancelBatchPrediction(pb.CancelBatchPredictionRequest(id=made[0]))


async def test_done_is_done(batches: Batches, tmp_path: Path, eventually: Eventually) -> None:
    batches.world.launcher.on_start = Staged((4, Exit(0)))
    async with running(batches, tmp_path):
        made = await batches.create()
        await batches.ended(eventually, made.id, batch_pb2.BATCH_PREDICTION_STATE_SUCCEEDED)
        with pytest.raises(Conflict, match="has succeeded already"):
            await batches.cancel(made.id)
    sweep = PartSweep(batches.world.database, batches.parts, 0.0)
    async with batches.world.database.read() as session:
        assert not (await session.execute(select(PredictedPart))).all()
    assert [digest async for digest, _ in batches.parts.list()]
    await sweep.sweep()
    assert not [digest async for digest, _ in batches.parts.list()]


@pytest.mark.slow
async def test_kill_9_again_and_again_costs_parts_and_doubles_none(runtime: Runtime, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/deployment.db"
    rows = table(300_000)
    async with migrated_database("services.deployment", url) as database:
        settings = Settings(work_dir=str(tmp_path / "own"), batch_part_rows=4000)
        world = World(database, Accounts(), Compute(), Training(), InMemoryLauncher(), InMemoryArtifactStore(), settings)
        world.training.signature = _signature(runtime.signature)
        await ship(world, runtime.package.folder)
        batches = Batches(world, tmp_path)
        await batches.add_dataset("rows", {"all": rows})
        async with serving(world, world.planner(), tmp_path) as client:
            batches.client = client
            made = await batches.create()
        seen = 0
        for kill in range(6):
            process = _started(url, str(tmp_path), str(runtime.package.folder))
            try:
                seen = await _until_more(batches, made.id, seen, ends=kill == 5)
            finally:
                process.kill()
                process.wait()
        row = await batches.row(made.id)
        parts = -(-len(rows) // row.part_rows)
        assert (row.state, row.rows_done) == (BatchState.SUCCEEDED, len(rows))
        assert row.attempts >= 4
        served = await batches.served()
        assert (len(served), sum(served)) == (parts, len(rows))


def _started(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PLATFORM, *words], stdout=subprocess.DEVNULL)


async def _until_more(batches: Batches, id: str, seen: int, *, ends: bool) -> int:
    """Rows done, once there are more than `seen`, or it has ended."""
    async with asyncio.timeout(60):
        while True:
            row = await batches.row(id)
            if BatchState(row.state).ended or (not ends and row.rows_done > seen):
                return row.rows_done
            await asyncio.sleep(0.01)
