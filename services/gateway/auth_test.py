"""Nobody gets in without a key, by any route, and a revoked key is forgotten at once."""

import re

import pytest
import structlog

from services.gateway.auth import PUBLIC_PATHS
from services.gateway.conftest import World
from services.gateway.settings import Limits


async def test_every_route_asks_for_a_key(world: World) -> None:
    walked = 0
    for route in world.control.app.routes:
        path = re.sub(r"\{(\w+)(:\w+)?\}", "x", route.path)
        for method in route.methods:
            response = await world.client.request(method, path, headers={"authorization": ""})
            expected = {200, 503} if path in PUBLIC_PATHS else {401}
            assert response.status_code in expected, (method, path)
            walked += 1
    assert walked > 90


@pytest.mark.parametrize("path", ["/", "/v1", "/nothing", "/docs/", "//docs", "/healthz/x", "/v1/%64atasets", "/openapi.json%00"])
async def test_paths_that_are_none_ask_too(world: World, path: str) -> None:
    response = await world.client.get(path, headers={"authorization": ""})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["code"] == "unauthenticated"


@pytest.mark.parametrize("value", ["", "Bearer", "Basic b3duZXI6a2V5", "owner-key", "Bearer nobody", "Bearer " + "x" * 600, "Bearer ä"])
async def test_keys_that_are_none(world: World, value: str) -> None:
    with structlog.testing.capture_logs() as logs:
        response = await world.client.get("/v1/me", headers={"authorization": value.encode("latin-1")})
    assert response.status_code == 401
    assert logs == []


async def test_the_other_header(world: World) -> None:
    both = {"authorization": "Bearer owner-key", "x-api-key": "viewer-key"}
    assert (await world.client.get("/v1/me", headers=both)).status_code == 401
    del world.client.headers["authorization"]
    assert (await world.client.get("/v1/me", headers={"x-api-key": "viewer-key"})).json()["role"] == "viewer"


async def test_answers_are_remembered_for_a_moment_and_forgotten_on_revocation(world: World) -> None:
    viewer = {"authorization": "Bearer viewer-key"}
    for _ in range(5):
        assert (await world.client.get("/v1/me", headers=viewer)).status_code == 200
    assert world.behind.accounts.asked == 1
    assert (await world.client.delete("/v1/api-keys/viewer-key")).status_code == 200
    assert (await world.client.get("/v1/me", headers=viewer)).status_code == 401
    before = world.behind.accounts.asked
    assert (await world.client.get("/v1/me", headers=viewer)).status_code == 401
    assert world.behind.accounts.asked == before


class TestRates:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(api_rate="3/minute")

    async def test_one_too_many(self, world: World) -> None:
        for left in (2, 1, 0):
            response = await world.client.get("/v1/me")
            assert response.status_code == 200
            assert response.headers["ratelimit-policy"] == '"api";q=3;w=60'
            assert f"r={left}" in response.headers["ratelimit"]
        response = await world.client.get("/v1/me")
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.json()["code"] == "rate_limited"
        assert (await world.client.get("/v1/me", headers={"authorization": "Bearer buyer-key"})).status_code == 200
        assert (await world.client.get("/healthz")).status_code == 200
