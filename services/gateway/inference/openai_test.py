"""OpenAI's paths: the endpoint of the body answers, tokens are recorded however a stream ends, and errors have that API's shape."""

import asyncio
from typing import Any

import pytest

from services.gateway.conftest import World
from services.gateway.inference.openai import ASKED_BYTES
from services.gateway.settings import Limits

TEXT = {"model": "wdbc", "prompt": "Good day"}


async def told(world: World, tokens_out: int) -> list[tuple[int, int, int, int]]:
    """Requests, rows and tokens that are recorded, once so many are."""
    async with asyncio.timeout(20):
        while True:
            records = [record for batch in world.behind.deployment.batches.values() for record in batch.records]
            sums = [sum(getattr(r, name) for r in records) for name in ("requests", "rows", "tokens_in", "tokens_out")]
            if sums[3] >= tokens_out and sums[0]:
                return [tuple(sums)]
            await asyncio.sleep(0.05)


def check_error(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    return error


@pytest.mark.parametrize(("path", "asked"), [("chat/completions", "chat"), ("completions", "completions"), ("embeddings", "embeddings")])
async def test_the_endpoint_of_the_body_answers(world: World, path: str, asked: str) -> None:
    replica = await world.add_replica()
    response = await world.client.post(f"/v1/{path}", json=TEXT)
    assert (response.status_code, response.json()) == (200, {"object": "list"})
    assert replica.seen[0][0] == f"/openai/{asked}"
    assert "ratelimit" in response.headers
    assert await told(world, 7) == [(1, 1, 5, 7)]


async def test_a_stream_passes_as_it_comes(world: World) -> None:
    replica = await world.add_replica()
    replica.pause = 0.2
    async with world.client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = response.aiter_lines()
        assert '"0 "' in await anext(lines)
        assert replica.streamed == 1
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert await told(world, 3) == [(1, 1, 5, 3)]


async def test_tokens_of_a_stream_that_breaks_off_are_recorded(world: World) -> None:
    replica = await world.add_replica()
    replica.pieces, replica.breaks_after = 500, 200
    response = await world.client.post("/v1/completions", json=TEXT | {"stream": True})
    assert response.status_code == 200
    assert '"code":"upstream_failed"' in response.text.rstrip().splitlines()[-1]
    assert await told(world, 200) == [(1, 1, 5, 200)]


async def test_tokens_of_a_caller_that_left_are_recorded(world: World) -> None:
    replica = await world.add_replica()
    replica.pieces, replica.pause = 10_000, 0.01
    async with world.client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as response:
        lines = response.aiter_lines()
        for _ in range(20):
            await anext(lines)
    [(requests, rows, tokens_in, tokens_out)] = await told(world, 10)
    assert (requests, rows, tokens_in) == (1, 1, 5)
    assert 10 <= tokens_out < 100
    streamed = replica.streamed
    await asyncio.sleep(0.3)
    assert replica.streamed <= streamed + 2


async def test_nothing_is_written_without_quota(world: World) -> None:
    await world.add_replica()
    world.behind.accounts.left = 0
    check_error(await world.client.post("/v1/completions", json=TEXT | {"stream": True}), 403, "quota_exceeded")
    assert world.behind.deployment.batches == {}


async def test_errors_have_all_four_keys(world: World) -> None:
    await world.add_replica()
    client = world.client
    error = check_error(await client.post("/v1/completions", json={"model": "wdbcc"}), 404, "model_not_found")
    assert "wdbc" in error["message"].partition("did you mean")[2]
    for body in ({}, {"model": 7}, {"model": ""}, {"model": "x" * 200}, []):
        assert check_error(await client.post("/v1/chat/completions", json=body), 400, "invalid_request")["param"] == "model"
    check_error(await client.post("/v1/embeddings", content=b'{"model": NaN}'), 400, "invalid_request")
    check_error(await client.post("/v1/completions", content=b" " * (ASKED_BYTES + 1)), 413, "too_large")
    check_error(await client.get("/v1/completions"), 405, "method_not_allowed")
    stranger = {"authorization": "Bearer nobody"}
    assert check_error(await client.post("/v1/completions", json=TEXT, headers=stranger), 401, "unauthenticated")


async def test_models_are_listed_for_both(world: World) -> None:
    listed = (await world.client.get("/v1/models")).json()
    assert [model["name"] for model in listed["models"]] == ["iris"]
    assert listed["object"] == "list"
    assert listed["data"] == [{"id": "wdbc", "object": "model", "created": 1_700_000_000, "owned_by": "acme"}]
    assert (await world.client.get("/v1/models?page_token=x")).json()["data"] == []


async def test_a_model_is_shown_to_both(world: World) -> None:
    iris = (await world.client.get("/v1/models/iris")).json()
    assert (iris["latest_version"], iris["id"], iris["created"]) == (2, "iris", 1_700_000_000)
    served = (await world.client.get("/v1/models/wdbc")).json()
    assert served == {"id": "wdbc", "object": "model", "created": 0, "owned_by": "acme"}
    missing = await world.client.get("/v1/models/irish")
    assert missing.status_code == 404
    assert (missing.json()["code"], missing.json()["error"]["code"]) == ("not_found", "model_not_found")


class TestRates:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(inference_rate="1/minute")

    async def test_one_too_many(self, world: World) -> None:
        await world.add_replica()
        assert (await world.client.post("/v1/embeddings", json=TEXT)).status_code == 200
        response = await world.client.post("/v1/embeddings", json=TEXT)
        assert check_error(response, 429, "rate_limited")["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) > 0
