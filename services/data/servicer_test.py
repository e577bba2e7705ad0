"""The service through its own gRPC server, with the real engine."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lepton.common.v1.options_pb2 import ROLE_EDITOR, ROLE_VIEWER
from lepton.common.v1.resource_pb2 import Artifact
from lepton.data.v1 import data_service_pb2 as pb
from lepton.data.v1 import dataset_pb2 as d
from lepton.data.v1.events_pb2 import DatasetDeleted, DatasetVersionFailed, DatasetVersionReady
from libs.errors import AppError, Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Transient
from libs.rpc import acting_for
from libs.testing import schema_differences
from services.data.engine.sample_files import ALBUM, zipped
from services.data.scene import Scene, scene
from services.data.tables import Dataset, File, Orphan, Table, Version

CSV = b"id,diagnosis,size\n1,M,1.5\n2,B,\n3,B,3.5\n3,B,3.5\n4,M,2.5\n5,M,9.5\n"


@pytest.fixture
async def data(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


async def test_the_migrations_make_the_tables() -> None:
    assert await schema_differences("services.data", Table.metadata) == []


async def test_an_upload_becomes_a_version(data: Scene) -> None:
    version = await data.upload("wdbc", CSV)
    assert (version.dataset, version.number, version.state, version.rows) == ("wdbc", 1, d.VERSION_STATE_READY, 6)
    assert [(column.name, column.type, column.nullable) for column in version.columns] == [
        ("id", d.COLUMN_TYPE_INTEGER, False),
        ("diagnosis", d.COLUMN_TYPE_STRING, False),
        ("size", d.COLUMN_TYPE_DOUBLE, True),
    ]
    assert version.notices[0] == "1 row repeats another."
    assert (version.lineage.kind, version.lineage.file_name) == ("upload", "data.csv")
    (split,) = version.splits
    assert (split.name, split.rows, await data.store.stat(split.file.digest)) == ("all", 6, version.size_bytes)
    (event,) = await data.events()
    assert isinstance(event, DatasetVersionReady)
    assert event.version == version == await data.get("wdbc", 0)
    assert data.accounts.held == {"datasets/acme/wdbc@1": len(CSV)}
    with acting_for("acme"):
        dataset = await data.client.GetDataset(pb.GetDatasetRequest(name="wdbc"))
        assert (dataset.kind, dataset.latest_version) == (d.DATASET_KIND_TABLE, 1)
        profile = await data.client.GetProfile(pb.GetProfileRequest(name="wdbc"))
        assert (profile.rows, profile.duplicate_rows, profile.columns[2].nulls, profile.columns[2].max) == (6, 1, 1, 9.5)
        shown = await data.client.PreviewDatasetVersion(pb.PreviewDatasetVersionRequest(name="wdbc", rows=2))
        assert [dict(row) for row in shown.rows] == [
            {"id": 1, "diagnosis": "M", "size": 1.5},
            {"id": 2, "diagnosis": "B", "size": None},
        ]


async def test_pictures(data: Scene) -> None:
    version = await data.upload("pets", zipped(ALBUM), "pets.zip")
    assert (version.kind, version.rows) == (d.DATASET_KIND_IMAGES, 3)
    with acting_for("acme"):
        shown = await data.client.PreviewDatasetVersion(pb.PreviewDatasetVersionRequest(name="pets", rows=1))
    assert dict(shown.rows[0]["image"]) == {"width": 8, "height": 8, "bytes": len(ALBUM["cat/1.png"])}
    with pytest.raises(Invalid, match="holds pictures, and this would bring a table"):
        await data.upload("pets", CSV)
    assert (await data.get("pets", 0)).number == 1


async def test_a_refused_upload_leaves_nothing(data: Scene) -> None:
    with pytest.raises(Invalid) as refused:
        await data.upload("wdbc", b"a,b\n1,2\n3\n")
    assert (refused.value.code, refused.value.errors[0].field) == ("invalid_data", "line 3")
    assert [await data.count(table) for table in (Dataset, Version, File)] == [0, 0, 0]
    assert await data.events() == []
    assert data.accounts.held == {}
    await data.sweep.discard()
    assert [digest async for digest, _ in data.store.list()] == []
    assert await data.count(Orphan) == 0
    assert (await data.upload("wdbc", CSV)).number == 1
    with pytest.raises(Invalid):
        await data.upload("wdbc", b"a,a\n1,2\n")
    assert (await data.upload("wdbc", CSV)).number == 2


async def test_bytes_that_another_version_names_stay(data: Scene) -> None:
    await data.upload("one", CSV)
    await data.upload("two", CSV)
    with acting_for("acme"):
        await data.client.DeleteDataset(pb.DeleteDatasetRequest(name="one"))
    await data.sweep.discard()
    for split in (await data.get("two", 1)).splits:
        assert await data.store.stat(split.file.digest)
    with acting_for("acme"):
        await data.client.DeleteDataset(pb.DeleteDatasetRequest(name="two"))
    await data.sweep.discard()
    assert [digest async for digest, _ in data.store.list()] == []


async def test_who_does_not_wait_finds_the_reason_in_the_version(data: Scene) -> None:
    version = await data.upload("wdbc", b"a,b\n1,2\n3\n", wait=0)
    assert version.state == d.VERSION_STATE_PROCESSING
    failed = await data.settled("wdbc", 1)
    assert (failed.state, failed.error.code, failed.error.errors[0].field) == (d.VERSION_STATE_FAILED, "invalid_data", "line 3")
    (event,) = await data.events()
    assert isinstance(event, DatasetVersionFailed)
    with pytest.raises(Conflict, match="could not be made"), acting_for("acme"):
        await data.client.GetProfile(pb.GetProfileRequest(name="wdbc"))


async def test_quota_is_taken_before_anything_is_stored(data: Scene) -> None:
    data.accounts.limit = len(CSV) + 10
    await data.upload("one", CSV)
    with pytest.raises(QuotaExceeded, match="pro has more"):
        await data.upload("two", CSV)
    assert [await data.count(table) for table in (Dataset, Version)] == [1, 1]
    data.accounts.away = Transient("accounts cannot be reached")
    with pytest.raises(Transient):
        await data.upload("three", CSV)
    data.accounts.away = None


async def test_transform_with_lineage(data: Scene) -> None:
    await data.upload("wdbc", CSV)
    version = await data.transform(
        "wdbc",
        d.TransformStep(dedupe=d.Dedupe()),
        d.TransformStep(impute=d.Impute(strategy=d.IMPUTE_STRATEGY_MEDIAN)),
        d.TransformStep(derive=d.Derive(column="big", expression="size > 2")),
        d.TransformStep(split=d.SplitRows(test=0.4, seed=7, stratify="diagnosis")),
    )
    assert (version.number, version.state, version.rows) == (2, d.VERSION_STATE_READY, 5)
    assert [(split.name, split.rows) for split in version.splits] == [("train", 3), ("test", 2)]
    assert (version.lineage.kind, version.lineage.source, len(version.lineage.steps)) == ("transform", "wdbc@1", 4)
    other = await data.transform("wdbc", d.TransformStep(drop_missing=d.DropMissing()), version=1, output="clean")
    assert (other.dataset, other.number, other.lineage.source) == ("clean", 1, "wdbc@1")
    with acting_for("acme"):
        shown = await data.client.PreviewDatasetVersion(pb.PreviewDatasetVersionRequest(name="wdbc", split="test"))
        assert len(shown.rows) == 2
        with pytest.raises(Invalid, match="no split 'tset'") as missing:
            await data.client.PreviewDatasetVersion(pb.PreviewDatasetVersionRequest(name="wdbc", split="tset"))
        assert missing.value.errors[0].suggestions == ("test",)
        listed = await data.client.ListDatasetVersions(pb.ListDatasetVersionsRequest(name="wdbc", page_size=1))
        assert [one.number for one in listed.versions] == [2]
        listed = await data.client.ListDatasetVersions(pb.ListDatasetVersionsRequest(name="wdbc", page_token=listed.next_page_token))
        assert [one.number for one in listed.versions] == [1]
        assert not listed.next_page_token


async def test_a_wrong_step_is_answered_at_once(data: Scene) -> None:
    await data.upload("wdbc", CSV)
    request = pb.CreateTransformRequest(
        name="wdbc",
        steps=[d.TransformStep(dedupe=d.Dedupe()), d.TransformStep(cast=d.Cast(column="diagnosys", type=d.COLUMN_TYPE_DOUBLE))],
    )
    with acting_for("acme"), pytest.raises(Invalid) as wrong:
        await data.client.CreateTransform(request)
    assert (wrong.value.code, wrong.value.errors[0].field) == ("invalid_spec", "steps[1].cast.column")
    assert wrong.value.errors[0].suggestions == ("diagnosis",)
    with acting_for("acme"), pytest.raises(Invalid, match="must have one of"):
        await data.client.CreateTransform(pb.CreateTransformRequest(name="wdbc", steps=[d.TransformStep()]))
    assert await data.count(Version) == 1
    failed = await data.transform("wdbc", d.TransformStep(filter=d.Filter(expression="size > 1000")))
    assert (failed.state, failed.error.errors[0].field) == (d.VERSION_STATE_FAILED, "steps[0].filter")


async def test_another_workspace_sees_nothing(data: Scene) -> None:
    await data.upload("wdbc", CSV)
    with acting_for("rival", role=ROLE_EDITOR):
        for call, request in (
            (data.client.GetDataset, pb.GetDatasetRequest(name="wdbc")),
            (data.client.GetDatasetVersion, pb.GetDatasetVersionRequest(name="wdbc", number=1)),
            (data.client.ListDatasetVersions, pb.ListDatasetVersionsRequest(name="wdbc")),
            (data.client.PreviewDatasetVersion, pb.PreviewDatasetVersionRequest(name="wdbc")),
            (data.client.GetProfile, pb.GetProfileRequest(name="wdbc")),
            (data.client.UpdateDataset, pb.UpdateDatasetRequest(name="wdbc", description="mine")),
            (data.client.DeleteDataset, pb.DeleteDatasetRequest(name="wdbc")),
            (data.client.CreateTransform, pb.CreateTransformRequest(name="wdbc", steps=[d.TransformStep(dedupe=d.Dedupe())])),
        ):
            with pytest.raises(NotFound):
                await call(request)
        assert not (await data.client.ListDatasets(pb.ListDatasetsRequest())).datasets
    assert (await data.upload("wdbc", CSV, workspace="rival")).number == 1


async def test_names_that_are_not_there(data: Scene) -> None:
    await data.upload("wdbc", CSV)
    with pytest.raises(NotFound, match=r"did you mean wdbc\?"):
        await data.get("wdcb", 1)
    with pytest.raises(NotFound, match="has no version 7; there are 1"):
        await data.get("wdbc", 7)
    with acting_for("acme"):
        await data.client.CreateDataset(pb.CreateDatasetRequest(name="empty", description="to come"))
        with pytest.raises(NotFound, match="upload its content first"):
            await data.client.GetDatasetVersion(pb.GetDatasetVersionRequest(name="empty"))
        with pytest.raises(Conflict) as taken:
            await data.client.CreateDataset(pb.CreateDatasetRequest(name="empty"))
        assert taken.value.code == "name_taken"
        request = pb.IngestContentRequest(name="x", content=Artifact(digest="sha256:" + "0" * 64), wait_seconds=1)
        with pytest.raises(Invalid, match="no such bytes"):
            await data.client.IngestContent(request)
    with acting_for("acme", role=ROLE_VIEWER), pytest.raises(Forbidden):
        await data.client.DeleteDataset(pb.DeleteDatasetRequest(name="wdbc"))


async def test_a_described_dataset_survives_a_refused_upload(data: Scene) -> None:
    with acting_for("acme"):
        await data.client.CreateDataset(pb.CreateDatasetRequest(name="wdbc", description="cells"))
    with pytest.raises(Invalid):
        await data.upload("wdbc", b"a,a\n1,2\n")
    assert (await data.upload("wdbc", CSV)).number == 1
    with acting_for("acme"):
        assert (await data.client.GetDataset(pb.GetDatasetRequest(name="wdbc"))).description == "cells"
        changed = await data.client.UpdateDataset(pb.UpdateDatasetRequest(name="wdbc", description="nuclei"))
        assert (changed.description, changed.latest_version) == ("nuclei", 1)


async def test_delete_and_begin_again(data: Scene) -> None:
    await data.upload("wdbc", CSV)
    with acting_for("acme"):
        await data.client.DeleteDataset(pb.DeleteDatasetRequest(name="wdbc"))
    deleted = (await data.events())[-1]
    assert isinstance(deleted, DatasetDeleted)
    assert (deleted.workspace, deleted.dataset, list(deleted.versions)) == ("acme", "wdbc", [1])
    with pytest.raises(NotFound):
        await data.get("wdbc", 1)
    with pytest.raises(Invalid):
        await data.upload("wdbc", b"a,a\n1,2\n")
    with pytest.raises(NotFound):
        await data.get("wdbc", 0)
    again = await data.upload("wdbc", zipped(ALBUM))
    assert (again.number, again.kind) == (2, d.DATASET_KIND_IMAGES)


async def test_pages_of_datasets(data: Scene) -> None:
    with acting_for("acme"):
        for name in ("c", "a", "e", "b", "d"):
            await data.client.CreateDataset(pb.CreateDatasetRequest(name=name))
        seen, token = [], ""
        while True:
            page = await data.client.ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token))
            seen += [dataset.name for dataset in page.datasets]
            if not (token := page.next_page_token):
                break
    assert seen == ["a", "b", "c", "d", "e"]


async def test_the_same_request_makes_one_version(data: Scene) -> None:
    first = await data.upload("wdbc", CSV, key="k1")
    assert await data.upload("wdbc", CSV, key="k1") == first
    made = await data.transform("wdbc", d.TransformStep(dedupe=d.Dedupe()), key="k2")
    assert (await data.transform("wdbc", d.TransformStep(dedupe=d.Dedupe()), key="k2")).number == made.number
    for _ in range(2):
        with pytest.raises(Invalid, match="twice"):
            await data.upload("wdbc", b"a,a\n1,2\n", key="k3")
    with pytest.raises(Invalid) as other:
        await data.upload("other", CSV, key="k1")
    assert other.value.code == "idempotency_key_reused"
    assert await data.count(Version) == 2


async def test_parts_become_one_version_in_their_order_once(data: Scene) -> None:
    parts = [(split, range(begin, begin + 700)) for begin, split in ((700, "test"), (0, "train"), (1400, "train"))]
    request = pb.CreateDerivedDatasetVersionRequest(name="answers", source="wdbc@3", model="wdbc@2", batch_prediction="bp-1")
    request.columns.add(name="id", type=d.COLUMN_TYPE_INTEGER)
    request.columns.add(name="prediction", type=d.COLUMN_TYPE_STRING)
    for split, ids in parts:
        content = io.BytesIO()
        pq.write_table(pa.table({"id": list(ids), "prediction": [f"p{number}" for number in ids]}), content)
        artifact = await data.put(content.getvalue())
        request.parts.add(digest=artifact.digest, size_bytes=artifact.size_bytes, path=split)
    with acting_for("acme"):
        made = [await data.client.CreateDerivedDatasetVersion(request, idempotency_key="bp-1") for _ in range(2)]
    assert {version.number for version in made} == {1}
    version = await data.settled("answers", 1)
    assert (version.state, version.rows, version.kind) == (d.VERSION_STATE_READY, 2100, d.DATASET_KIND_TABLE)
    lineage = version.lineage
    assert (lineage.kind, lineage.source, lineage.model, lineage.batch_prediction) == ("prediction", "wdbc@3", "wdbc@2", "bp-1")
    found = {split.name: await _ids(data, split.file.digest) for split in version.splits}
    assert found == {"train": [*range(700), *range(1400, 2100)], "test": list(range(700, 1400))}
    assert await data.count(Version) == 1


async def _ids(data: Scene, digest: str) -> list[int]:
    content = b"".join([chunk async for chunk in data.store.open(digest)])
    return list(pq.read_table(io.BytesIO(content)).column("id").to_pylist())


async def test_parts_that_are_not_in_the_store_make_nothing(data: Scene) -> None:
    request = pb.CreateDerivedDatasetVersionRequest(name="answers", source="wdbc@3", model="wdbc@2", batch_prediction="bp-1")
    request.columns.add(name="id", type=d.COLUMN_TYPE_INTEGER)
    request.parts.add(digest="sha256:" + "0" * 64, path="all")
    with acting_for("acme"), pytest.raises(Invalid, match="no such bytes"):
        await data.client.CreateDerivedDatasetVersion(request, idempotency_key="bp-2")
    assert await data.count(Version) == 0


async def test_many_uploads_at_once_get_numbers_of_their_own(data: Scene) -> None:
    uploads = (data.upload("wdbc", CSV + f"{number},M,1\n".encode(), wait=50) for number in range(6))
    made = await asyncio.gather(*uploads)
    assert sorted(version.number for version in made) == [1, 2, 3, 4, 5, 6]


async def test_a_delete_while_it_is_made_wins(data: Scene) -> None:
    big = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number) for number in range(400_000))
    version = await data.upload("wdbc", big, wait=0)
    assert version.state == d.VERSION_STATE_PROCESSING
    with acting_for("acme"):
        await data.client.DeleteDataset(pb.DeleteDatasetRequest(name="wdbc"))
    waiting = asyncio.create_task(data.upload("other", CSV))
    assert (await waiting).state == d.VERSION_STATE_READY
    with pytest.raises(AppError):
        await data.get("wdbc", 1)
