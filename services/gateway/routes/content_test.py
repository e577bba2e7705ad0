"""Files go in and come out, whole or in part; events go on where they broke; traces show to their owner."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from lepton.accounts.v1 import workspace_pb2
from lepton.common.v1 import resource_pb2
from lepton.data.v1 import dataset_pb2
from libs.errors import Invalid
from libs.storage import InMemoryArtifactStore, digest_of
from libs.telemetry import Span
from services.gateway.conftest import World
from services.gateway.settings import Limits
from services.gateway.transcode_test import check_problem

CSV = b"a,b\n1,2\n" * 1000


async def upload(world: World, **options: object) -> httpx.Response:
    return await world.client.put("/v1/datasets/wdbc/content", content=CSV, **options)


async def test_an_upload_becomes_a_version(world: World) -> None:
    headers = {"content-disposition": 'attachment; filename="my data.csv"', "idempotency-key": "k"}
    response = await upload(world, headers=headers)
    assert (response.status_code, response.headers["location"]) == (201, "/v1/datasets/wdbc/versions/1")
    request, key = world.behind.data.requests[-1]
    assert (request.file_name, request.wait_seconds, key) == ("my data.csv", 20, "k")
    assert (request.content.digest, request.content.size_bytes) == (digest_of(CSV), len(CSV))
    await upload(world, params={"filename": "ä.csv", "wait": 0})
    assert world.behind.data.requests[-1][0].file_name == "ä.csv"
    world.behind.data.state = dataset_pb2.VERSION_STATE_PROCESSING
    assert (await upload(world)).status_code == 202
    world.behind.data.error = Invalid("line 17 has 3 fields, not 2", code="invalid_data")
    check_problem(await upload(world), 422, "invalid_data")


async def test_uploads_that_cannot_be(world: World) -> None:
    check_problem(await world.client.put("/v1/datasets/Wdbc!/content", content=CSV), 400, "invalid_request")
    check_problem(await world.client.put("/v1/datasets/wdbc/content", content=b""), 422, "invalid_data")
    check_problem(await upload(world, params={"wait": "long"}), 400, "invalid_request")
    check_problem(await upload(world, params={"wait": "nan"}), 400, "invalid_request")
    check_problem(await upload(world, params={"file": "a"}), 400, "invalid_request")
    check_problem(await upload(world, params={"filename": "x" * 300}), 400, "invalid_request")
    assert world.behind.data.requests == []


async def test_a_model_that_a_member_brings(world: World) -> None:
    headers = {"idempotency-key": "k"}
    response = await world.client.put("/v1/models/mine/content", content=CSV, headers=headers)
    assert (response.status_code, response.headers["location"]) == (201, "/v1/models/mine/versions/1")
    assert response.json()["source"] == "uploaded"
    request, key = world.behind.training.requests[-1]
    assert (request.name, request.content.digest, key) == ("mine", digest_of(CSV), "k")
    assert await world.models.stat(digest_of(CSV)) == len(CSV)
    check_problem(await world.client.put("/v1/models/Mine!/content", content=CSV), 400, "invalid_request")
    check_problem(await world.client.put("/v1/models/mine/content", content=b""), 422, "invalid_data")
    check_problem(await world.client.put("/v1/models/mine/content", params={"x": 1}, content=CSV), 400, "invalid_request")
    viewer = {"authorization": "Bearer viewer-key"}
    check_problem(await world.client.put("/v1/models/mine/content", content=CSV, headers=viewer), 403, "forbidden")
    assert len(world.behind.training.requests) == 1


@pytest.mark.parametrize("path", ["/v1/datasets/wdbc/content", "/v1/models/mine/content"])
async def test_what_the_plan_has_no_room_for(world: World, path: str) -> None:
    world.behind.accounts.quotas = [workspace_pb2.Quota(metric="storage_bytes", limit=9000, used=1001, remaining=7999)]

    async def unsized() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield CSV

    problem = check_problem(await world.client.put(path, content=CSV * 1000), 403, "quota_exceeded")
    assert (problem["metric"], problem["limit"], problem["used"], problem["remaining"]) == ("storage_bytes", 9000, 1001, 7999)
    assert problem["detail"].startswith(
        "the plan allows 8.789 KiB of storage and 1001 bytes are in use, and the file has 7.629 MiB; delete a dataset or a model, or change"
    )
    problem = check_problem(await world.client.put(path, content=unsized()), 403, "quota_exceeded")
    assert "the file has at least " in problem["detail"]
    for store in (world.models, world.datasets):
        assert [digest async for digest, _ in store.list()] == []
    world.behind.accounts.quotas[0].remaining = len(CSV)
    assert (await world.client.put(path, content=CSV)).status_code == 201


async def test_it_is_refused_before_a_byte_is_sent(world: World) -> None:
    """By what curl asks of large files by itself: 'Expect: 100-continue'."""
    host, port = world.gateway.address.removeprefix("http://").split(":")
    head = "PUT /v1/models/mine/content HTTP/1.1\r\nhost: a\r\nauthorization: Bearer owner-key\r\nexpect: 100-continue\r\n"
    for remaining, answered in ((7999, b"HTTP/1.1 403"), (8000, b"HTTP/1.1 100")):
        world.behind.accounts.quotas = [workspace_pb2.Quota(metric="storage_bytes", limit=9000, used=0, remaining=remaining)]
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}content-length: 8000\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(answered)
        writer.close()


class TestBounds:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(upload_bytes=1000)

    async def test_an_upload_that_is_too_large(self, world: World) -> None:
        check_problem(await upload(world), 413, "too_large")

        async def endless() -> object:
            for _ in range(1000):
                yield b"x" * 100

        check_problem(await world.client.put("/v1/datasets/wdbc/content", content=endless()), 413, "too_large")
        assert [digest async for digest, _ in world.datasets.list()] == []


async def test_a_version_is_downloaded_whole_or_in_part(world: World) -> None:
    await upload(world)
    path = "/v1/datasets/wdbc/versions/1/content"
    whole = await world.client.get(path)
    assert (whole.status_code, whole.content) == (200, CSV)
    assert whole.headers["content-length"] == str(len(CSV))
    assert whole.headers["content-type"] == "application/vnd.apache.parquet"
    tag = whole.headers["etag"]
    assert tag == f'"{digest_of(CSV)}"'
    for wanted, first, last in [
        ("bytes=0-3", 0, 3),
        ("bytes=8-", 8, len(CSV) - 1),
        ("bytes=-5", len(CSV) - 5, len(CSV) - 1),
        ("bytes=1-99999", 1, len(CSV) - 1),
    ]:
        part = await world.client.get(path, headers={"range": wanted})
        assert (part.status_code, part.content) == (206, CSV[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(CSV)}"
    for ignored in ("bytes=5-3", "bytes=0-1,3-4", "lines=1-2", "bytes=-", "bytes=a-b"):
        assert (await world.client.get(path, headers={"range": ignored})).status_code == 200
    assert (await world.client.get(path, headers={"range": "bytes=0-3", "if-range": '"other"'})).status_code == 200
    beyond = await world.client.get(path, headers={"range": "bytes=99999-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(CSV)}")
    assert (await world.client.get(path, headers={"if-none-match": tag})).status_code == 304
    head = await world.client.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(CSV)), b"")


async def test_splits_are_named(world: World) -> None:
    await upload(world)
    version = world.behind.data.versions["wdbc"]
    version.splits[0].name = "train"
    version.splits.add(name="test", file=version.splits[0].file)
    path = "/v1/datasets/wdbc/versions/1/content"
    problem = check_problem(await world.client.get(path), 400, "invalid_request")
    assert problem["errors"][0]["suggestions"] == ["train", "test"]
    check_problem(await world.client.get(path, params={"split": "tset"}), 400, "invalid_request")
    response = await world.client.get(path, params={"split": "test"})
    assert "wdbc-1-test.parquet" in response.headers["content-disposition"]
    version.state = dataset_pb2.VERSION_STATE_PROCESSING
    check_problem(await world.client.get(path, params={"split": "test"}), 409, "conflict")


async def test_files_of_a_model(world: World) -> None:
    async def chunks() -> object:
        yield b"weights"

    stored = await world.models.put(chunks())
    world.behind.training.files = [resource_pb2.Artifact(digest=stored.digest, path="onnx/model.onnx")]
    base = "/v1/models/wdbc/versions/1/files/"
    assert (await world.client.get(base + "onnx/model.onnx")).content == b"weights"
    check_problem(await world.client.get(base + "../model.onnx"), 404, "not_found")
    check_problem(await world.client.get(base + "onnx/model.onx"), 404, "not_found")


class Reached(InMemoryArtifactStore):
    """A store that clients reach."""

    asked: tuple[str, int, str, str] | None = None

    async def download_url(self, digest: str, *, seconds: int, file_name: str, media_type: str) -> str | None:
        self.asked = digest, seconds, file_name, media_type
        return f"https://store.example/{digest}?signed"


class TestRedirects:
    @pytest.fixture
    def datasets(self) -> Reached:
        return Reached()

    @pytest.fixture
    def models(self) -> Reached:
        return Reached()

    async def test_a_large_file_is_fetched_from_the_store(self, world: World, datasets: Reached) -> None:
        large = CSV * 200
        await world.client.put("/v1/datasets/wdbc/content", content=large)
        path = "/v1/datasets/wdbc/versions/1/content"
        there = await world.client.get(path)
        assert (there.status_code, there.content) == (307, b"")
        assert there.headers["location"] == f"https://store.example/{digest_of(large)}?signed"
        assert (there.headers["etag"], there.headers["cache-control"]) == (f'"{digest_of(large)}"', "no-store")
        assert datasets.asked == (digest_of(large), 300, "wdbc-1.parquet", "application/vnd.apache.parquet")
        assert (await world.client.get(path, headers={"range": "bytes=0-3"})).status_code == 307
        assert (await world.client.get(path, headers={"range": "bytes=99999999-"})).status_code == 416
        assert (await world.client.get(path, headers={"if-none-match": there.headers["etag"]})).status_code == 304

    async def test_but_not_where_that_would_not_do(self, world: World) -> None:
        large = CSV * 200
        await world.client.put("/v1/datasets/wdbc/content", content=large)
        path = "/v1/datasets/wdbc/versions/1/content"
        assert (await world.client.get(path, headers={"x-lepton-redirect": "no"})).content == large
        assert (await world.client.head(path)).status_code == 200
        part = await world.client.get(path, headers={"range": "bytes=0-3", "if-range": f'"{digest_of(large)}"'})
        assert (part.status_code, part.content) == (206, large[:4])
        await upload(world)
        assert (await world.client.get(path)).content == CSV

    async def test_nor_to_another_workspace(self, world: World, datasets: Reached) -> None:
        await world.client.put("/v1/datasets/wdbc/content", content=CSV * 200)
        check_problem(await world.client.get("/v1/datasets/other/versions/1/content"), 404, "not_found")
        nobody = await world.client.get("/v1/datasets/wdbc/versions/1/content", headers={"authorization": "Bearer nobody"})
        check_problem(nobody, 401, "unauthenticated")
        assert datasets.asked is None

    async def test_files_of_a_model_too(self, world: World, models: Reached) -> None:
        async def chunks() -> object:
            yield bytes(2 << 20)

        stored = await world.models.put(chunks())
        world.behind.training.files = [resource_pb2.Artifact(digest=stored.digest, path="onnx/model.onnx")]
        assert (await world.client.get("/v1/models/wdbc/versions/1/files/onnx/model.onnx")).status_code == 307
        assert models.asked == (stored.digest, 300, "model.onnx", "application/octet-stream")


async def read_events(world: World, last: str = "") -> list[str]:
    headers = {"last-event-id": last} if last else {}
    async with world.client.stream("GET", "/v1/training-jobs/job-1/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line async for line in response.aiter_lines()]


async def test_events_go_on_where_they_broke(world: World) -> None:
    lines = await read_events(world)
    assert [line for line in lines if line.startswith(("id", "event"))] == [
        part for number in "123" for part in (f"id: {number}", "event: metric")
    ] + ["id: 4", "event: job"]
    assert 'data: {"name":"loss"' in lines[4]
    world.behind.training.breaks = True
    lines = await read_events(world, "1")
    assert [line for line in lines if line.startswith(("id", "event"))] == ["id: 2", "event: metric", "event: error"]
    assert world.behind.training.after == ["", "1"]
    check_problem(await world.client.get("/v1/training-jobs/job-2/events"), 404, "not_found")


async def test_streams_end_when_the_gateway_stops_and_when_the_client_leaves(world: World) -> None:
    world.behind.training.pause = 60
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read_events(world), 0.5)
    reading = asyncio.create_task(read_events(world))
    await asyncio.sleep(0.3)
    await asyncio.wait_for(world.control.stop(), 3)
    assert "id: 1" in await reading


async def test_a_trace_shows_to_its_owner_only(world: World) -> None:
    trace = "ab" * 16

    def span(number: str, parent: str, workspace: str = "", start: int = 1) -> Span:
        attributes = {"lepton.workspace": workspace} if workspace else {}
        return Span(trace, number, parent, f"span {number}", "gateway", start, start + 1, "", attributes)

    world.traces.kept = [
        span("1", "", "acme"),
        span("2", "1", start=2),
        span("3", "2", start=3),
        span("8", "9", "buyers"),
        span("7", "8", "acme"),
    ]
    shown = (await world.client.get(f"/v1/traces/{trace}")).json()
    assert [each["span_id"] for each in shown["spans"]] == ["1", "2", "3"]
    buyer = (await world.client.get(f"/v1/traces/{trace}", headers={"authorization": "Bearer buyer-key"})).json()
    assert {each["span_id"] for each in buyer["spans"]} == {"7", "8"}
    world.traces.kept = [span("1", "2", "acme"), span("2", "1", "acme")]
    check_problem(await world.client.get(f"/v1/traces/{trace}"), 404, "not_found")
    check_problem(await world.client.get(f"/v1/traces/{'0' * 32}"), 404, "not_found")


async def test_a_trace_is_continued(world: World) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    assert (await world.client.get("/v1/me", headers={"traceparent": parent})).headers["x-lepton-trace-id"] == "ab" * 16
    odd = await world.client.get("/v1/me", headers={"traceparent": "00-zz"})
    assert len(odd.headers["x-lepton-trace-id"]) == 32
