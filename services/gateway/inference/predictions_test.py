"""Rows are paid for before they are answered, replicas may die, and bytes pass as they are."""

import asyncio
import time

import pytest

from libs.errors import Transient
from services.gateway.conftest import World
from services.gateway.fakes import Replica
from services.gateway.settings import Limits
from services.gateway.transcode_test import check_problem

PATH = "/v1/endpoints/wdbc/predict"
ROWS = {"instances": [{"a": 1}, {"a": 2}]}


async def told(world: World, rows: int = 0) -> list[str]:
    """What happened, once the rows that were answered (or so many) are recorded."""
    async with asyncio.timeout(20):
        while not (recorded := sum(int(line.split()[1]) for line in world.behind.log if line.startswith("record"))) or recorded < rows:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return world.behind.log


async def test_rows_are_answered_and_recorded(world: World) -> None:
    replica = await world.add_replica()
    response = await world.client.post(PATH, json=ROWS)
    assert (response.status_code, response.json()) == (200, {"predictions": [1, 1]})
    assert await told(world) == ["reserve acme 1..10", "answer 2", "record 2"]
    [request] = world.behind.deployment.batches.values()
    assert [(r.workspace, r.endpoint, r.requests, r.rows) for r in request.records] == [("acme", "wdbc", 1, 2)]
    path, headers, _ = replica.seen[0]
    assert path == "/predict"
    assert headers["traceparent"].split("-")[1] == response.headers["x-lepton-trace-id"]
    assert "authorization" not in headers


async def test_requests_share_calls(world: World) -> None:
    await world.add_replica()
    world.behind.accounts.left = 10_000
    answers = await asyncio.gather(*(world.client.post(PATH, json=ROWS) for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}
    await told(world, 120)
    batches = world.behind.deployment.batches.values()
    assert sum(record.rows for batch in batches for record in batch.records) == 120
    assert len(batches) < 60
    assert world.behind.deployment.resolved <= 3


async def test_recording_is_tried_again_under_the_same_id(world: World) -> None:
    await world.add_replica()
    world.behind.deployment.failures = 6
    assert (await world.client.post(PATH, json=ROWS)).status_code == 200
    await told(world)
    assert len(world.behind.deployment.batches) == 1


async def test_no_answer_without_quota(world: World) -> None:
    await world.add_replica()
    world.behind.accounts.left = 3
    assert (await world.client.post(PATH, json=ROWS)).status_code == 200
    problem = check_problem(await world.client.post(PATH, json=ROWS), 403, "quota_exceeded")
    assert (problem["remaining"], problem["plans"]) == (0, ["pro"])
    assert "pro has more" in problem["detail"]
    assert (await world.client.post(PATH, json={"instances": [{}]})).status_code == 200
    check_problem(await world.client.post(PATH, json={"instances": [{}]}), 403, "quota_exceeded")
    await told(world, 3)
    recorded = [record.rows for batch in world.behind.deployment.batches.values() for record in batch.records]
    assert sum(recorded) == 3


async def test_what_was_not_used_is_given_back_at_the_end(world: World) -> None:
    await world.add_replica()
    await world.client.post(PATH, json=ROWS)
    assert world.behind.accounts.reserved
    await world.gateway.stop()
    assert not world.behind.accounts.reserved


async def test_a_replica_that_has_too_much_to_do_says_when_to_come_back(world: World) -> None:
    replica = await world.add_replica()
    replica.refusal = Transient("400 rows wait already", code="rate_limited", meta={"retry_after": 7})
    response = await world.client.post(PATH, json=ROWS)
    problem = check_problem(response, 429, "rate_limited")
    assert (response.headers["retry-after"], problem["retry_after_seconds"], problem["detail"]) == ("7", 7, "400 rows wait already")


async def test_a_dead_replica_is_passed_over(world: World) -> None:
    dead = await world.add_replica("dead")
    await dead.stop()
    await world.add_replica("alive")
    for _ in range(6):
        assert (await world.client.post(PATH, json=ROWS)).status_code == 200


async def test_no_replica_lives(world: World) -> None:
    dead = await world.add_replica("dead")
    await dead.stop()
    check_problem(await world.client.post(PATH, json=ROWS), 504, "deadline_exceeded")
    assert world.behind.deployment.batches == {}


async def test_a_request_is_held_while_the_only_replica_is_replaced(world: World) -> None:
    dead = await world.add_replica("dead")
    await dead.stop()
    asking = asyncio.create_task(world.client.post(PATH, json=ROWS))
    await asyncio.sleep(0.5)
    world.behind.deployment.replicas.clear()
    await world.add_replica("alive")
    assert (await asking).status_code == 200


async def test_a_replica_that_was_replaced_under_its_address(world: World) -> None:
    replica = await world.add_replica()
    world.behind.deployment.replicas[0].token = "old"
    check_problem(await world.client.post(PATH, json=ROWS), 503, "unavailable")
    world.behind.deployment.replicas[0].token = "token"
    assert (await world.client.post(PATH, json=ROWS)).status_code == 200
    assert len(replica.seen) > 1


async def test_an_endpoint_that_starts_is_waited_for(world: World) -> None:
    asking = asyncio.create_task(world.client.post(PATH, json=ROWS))
    await asyncio.sleep(0.2)
    await world.add_replica()
    assert (await asking).status_code == 200


async def test_the_least_busy_replica_is_taken(world: World) -> None:
    slow, quick = await world.add_replica("slow"), await world.add_replica("quick")
    slow.pause = quick.pause = 0.2
    await asyncio.gather(*(world.client.post(PATH, json=ROWS) for _ in range(8)))
    assert len(slow.seen) == len(quick.seen) == 4


async def test_problems_of_a_replica_become_ours(world: World) -> None:
    await world.add_replica()
    problem = check_problem(await world.client.post(PATH, json={"rows": []}), 422, "invalid_record")
    assert problem["errors"] == [{"field": "instances", "message": "it is missing", "suggestions": []}]
    assert world.behind.deployment.batches == {}


async def test_another_workspace_has_no_such_endpoint(world: World) -> None:
    await world.add_replica()
    check_problem(await world.client.post(PATH, json=ROWS, headers={"authorization": "Bearer buyer-key"}), 404, "not_found")
    check_problem(await world.client.post("/v1/endpoints/other/predict", json=ROWS), 404, "not_found")


async def test_a_listing_is_invoked_at_the_buyers_expense(world: World) -> None:
    await world.add_replica()
    check_problem(await world.client.post("/v1/listings/breast-check/invoke", json=ROWS), 403, "subscription_required")
    buyer = {"authorization": "Bearer buyer-key"}
    assert (await world.client.post("/v1/listings/breast-check/invoke", json=ROWS, headers=buyer)).status_code == 200
    assert await told(world) == ["reserve buyers 1..10", "answer 2", "record 2"]
    [request] = world.behind.marketplace.batches.values()
    assert [(r.subscription, r.requests, r.rows) for r in request.records] == [("sub-1", 1, 2)]
    assert world.behind.deployment.batches == {}


async def test_the_open_inference_protocol_passes_bytes(world: World) -> None:
    replica = await world.add_replica()
    body = b'{"inputs": []}' + bytes(range(256))
    headers = {"inference-header-content-length": "14", "content-type": "application/octet-stream"}
    response = await world.client.post("/v2/models/wdbc/infer", content=body, headers=headers)
    assert (response.status_code, response.content) == (200, b"{...}" + bytes(range(256)))
    assert response.headers["inference-header-content-length"] == "5"
    path, seen, sent = replica.seen[0]
    assert (path, sent, seen["inference-header-content-length"]) == ("/v2/models/wdbc/infer", body, "14")
    assert (await told(world))[-1] == "record 2"
    assert (await world.client.post("/v2/models/wdbc/versions/3/infer", content=body)).status_code == 200
    assert replica.seen[-1][0] == "/v2/models/wdbc/versions/3/infer"


async def test_the_open_inference_protocol_has_its_own_errors(world: World) -> None:
    await world.add_replica()
    client = world.client
    for response, status in [
        (await client.post("/v2/models/other/infer", content=b"{}"), 404),
        (await client.post("/v2/models/wdbc/infer", content=b"nonsense"), 400),
        (await client.get("/v2/models/wdbc/infer"), 405),
        (await client.get("/v2/nothing"), 404),
        (await client.get("/v2", headers={"authorization": "Bearer nobody"}), 401),
        (await client.post("/v2/models/wdbc/infer", content=b"{}", headers={"content-encoding": "gzip"}), 415),
    ]:
        assert response.status_code == status
        assert list(response.json()) == ["error"]
        assert response.headers["x-lepton-trace-id"]


async def test_metadata_and_health_of_the_open_inference_protocol(world: World) -> None:
    await world.add_replica()
    assert (await world.client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await world.client.get(path)).json() == {"live": True, "ready": True}
    assert (await world.client.get("/v2/models/wdbc")).json()["name"] == "wdbc"
    assert (await world.client.get("/v2/models/wdbc/versions/1/ready")).json()["ready"]
    world.behind.deployment.replicas.clear()
    await asyncio.sleep(1.1)
    started = time.monotonic()
    response = await world.client.get("/v2/models/wdbc/ready")
    assert (response.status_code, response.json()["ready"]) == (400, False)
    assert time.monotonic() - started < 5


class TestBounds:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(predict_bytes=1000)

    async def test_a_body_that_is_too_large(self, world: World) -> None:
        replica: Replica = await world.add_replica()
        check_problem(await world.client.post(PATH, content=b" " * 1001), 413, "too_large")
        assert replica.seen == []
