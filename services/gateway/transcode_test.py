"""REST is what the contracts say, and whatever comes in, a problem in words goes out."""

import json
from itertools import product
from typing import Any

from libs.errors import Transient
from services.gateway.conftest import World

JOB = {
    "name": "wdbc",
    "dataset": "wdbc@2",
    "task": "classification",
    "target": "diagnosis",
    "output_model": "wdbc",
    "model": {"architecture": "mlp", "params": {"hidden": [64, 64]}, "init": "random"},
    "training": {"epochs": 30, "batch_size": 32, "learning_rate": 0.001, "optimizer": "adamw", "seed": 7},
    "resources": {"accelerator": "cpu", "count": 1},
}


def check_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"https://lepton.dev/problems/{code}"
    assert problem["trace_id"] == response.headers["x-lepton-trace-id"]
    assert problem["detail"]
    return problem


async def test_reads_pages_and_queries(world: World) -> None:
    assert (await world.client.get("/v1/datasets/wdbc")).json()["name"] == "wdbc"
    response = await world.client.get("/v1/datasets", params={"page_size": 5, "page_token": "t"})
    assert response.json()["datasets"][0]["name"] == "wdbc"
    request, _ = world.behind.data.requests[-1]
    assert (request.page_size, request.page_token) == (5, "t")
    await world.client.get("/v1/training-jobs?state=RUNNING")
    assert world.behind.training.requests[-1].state == 3
    preview = await world.client.get("/v1/datasets/wdbc/versions/1/preview")
    assert preview.json()["rows"] == [{"radius": 1.5, "diagnosis": None}]
    assert (await world.client.get("/v1/me")).json()["role"] == "owner"


async def test_creates_say_where(world: World) -> None:
    response = await world.client.post("/v1/datasets", json={"name": "a"})
    assert (response.status_code, response.headers["location"]) == (201, "/v1/datasets/a")
    response = await world.client.post("/v1/training-jobs", json=JOB)
    assert (response.status_code, response.headers["location"]) == (202, "/v1/training-jobs/job-1")
    response = await world.client.post("/v1/datasets/a/transforms", json={"steps": [{"dedupe": {}}]})
    assert (response.status_code, response.headers["location"]) == (202, "/v1/datasets/a/versions/2")
    response = await world.client.post("/v1/workspaces", json={"name": "new"})
    assert (response.status_code, response.headers["location"]) == (201, "/v1/workspaces/new")
    response = await world.client.post("/v1/training-jobs/job-1/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert (await world.client.delete("/v1/datasets/wdbc")).status_code == 204


async def test_the_idempotency_key_goes_along(world: World) -> None:
    await world.client.post("/v1/datasets", json={"name": "a"}, headers={"idempotency-key": "k-1"})
    assert world.behind.data.requests[-1][1] == "k-1"
    for bad in ("", "a b", "x" * 256, "ä".encode()):
        response = await world.client.post("/v1/datasets", json={"name": "a"}, headers={"idempotency-key": bad})
        check_problem(response, 400, "invalid_request")
    assert len(world.behind.data.requests) == 1


async def test_problems_of_services_arrive_whole(world: World) -> None:
    problem = check_problem(await world.client.get("/v1/datasets/wbdc"), 404, "not_found")
    assert problem["errors"] == [{"field": "dataset", "message": "'wbdc' does not exist", "suggestions": ["wdbc"]}]
    assert problem["instance"] == "/v1/datasets/wbdc"
    world.behind.data.error = Transient("away")
    response = await world.client.post("/v1/datasets", json={"name": "a"})
    assert check_problem(response, 503, "unavailable")["retryable"]
    assert response.headers["retry-after"]
    world.behind.data.error = RuntimeError("secret")
    problem = check_problem(await world.client.post("/v1/datasets", json={"name": "a"}), 500, "internal")
    assert "secret" not in json.dumps(problem)


async def test_a_viewer_may_not_write(world: World) -> None:
    viewer = {"authorization": "Bearer viewer-key"}
    problem = check_problem(await world.client.post("/v1/datasets", json={"name": "a"}, headers=viewer), 403, "forbidden")
    assert problem["needed"] == "editor"
    check_problem(await world.client.put("/v1/datasets/a/content", content=b"x", headers=viewer), 403, "forbidden")


async def test_paths_and_methods_that_are_not_there(world: World) -> None:
    check_problem(await world.client.get("/v1/nothing"), 404, "not_found")
    check_problem(await world.client.get("/v1/datasets/"), 404, "not_found")
    response = await world.client.patch("/v1/datasets")
    check_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


JSON = {"content-type": "application/json"}
POSTS = ["/v1/training-jobs", "/v1/datasets", "/v1/datasets/a/transforms", "/v1/workspaces", "/v1/listings"]
BODIES: list[bytes] = [
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"text"',
    b"NaN",
    b'{"name": NaN}',
    b'{"name": 1e999}',
    b'{"name": "\\ud800"}',
    b'{"name": "\xff"}',
    b'{"\\ud800": 1}',
    b'{"name": "a\\u0000b"}',
    b'{"name": ["a"]}',
    b'{"name": {"a": 1}}',
    b'{"name": 5}',
    b'{"name": true}',
    b'{"nam": "a"}',
    b'{"name": "' + b"a" * 100_000 + b'"}',
    b'{"a":' * 500 + b"1" + b"}" * 500,
    b'{"a":' * 5000,
    b"[" * 100_000,
    b'{"name": ' + b"9" * 10_000 + b"}",
    b'{"name": "../../etc/passwd"}',
    b'{"name": "\'; DROP TABLE datasets; --"}',
    b'{"__proto__": {"name": 1}}',
    b"\x00\x01\x02",
    b"\xef\xbb\xbf{}",
    b'{"name": "a",}',
]


async def test_a_hundred_bodies_that_are_wrong(world: World) -> None:
    for path, body in product(POSTS, BODIES):
        response = await world.client.post(path, content=body, headers=JSON)
        assert 400 <= response.status_code < 500, (path, body[:40], response.text)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"]
    assert world.behind.data.requests == []


FIELDS: list[dict[str, Any]] = [{"training": {"learning_rate": value}} for value in (0, -1, "fast", [], {}, 1e308, "NaN", True)] + [
    {"task": "regresion"},
    {"task": 1},
    {"task": "unspecified"},
    {"model": {"architecture": "perceptron"}},
    {"model": {}},
    {"model": {"architecture": "mlp", "params": []}},
    {"training": {"epochs": 1e20}},
    {"training": {"epochs": -1}},
    {"training": {"seed": -1}},
    {"training": {"seed": 2**64}},
    {"training": {"validation_fraction": 0.9}},
    {"training": {"early_stopping": {}}},
    {"resources": {"accelerator": "abacus"}},
    {"resources": {"count": 1e9}},
    {"resources": {"memory_bytes": -5}},
    {"features": ["a", 5]},
    {"dataset": ""},
    {"output_model": "Ünïcode"},
    {"surplus": 1},
]


async def test_what_a_user_gets_wrong_in_a_job(world: World) -> None:
    for change in FIELDS:
        response = await world.client.post("/v1/training-jobs", json=JOB | change)
        problem = check_problem(response, 400, "invalid_request")
        assert problem["errors"][0]["field"].partition(".")[0].partition("[")[0] in change
    assert world.behind.training.requests == []


ADDRESSES = [
    "/v1/datasets?page_size=x",
    "/v1/datasets?page_size=-1",
    "/v1/datasets?page_size=99999999999999999999",
    "/v1/datasets?page_size=1e3&page_size=5",
    "/v1/datasets?page_sise=1",
    "/v1/datasets?page_token=%00",
    "/v1/datasets?page_token=" + "a" * 600,
    "/v1/datasets?%FF=1",
    "/v1/datasets?" + "a=1&" * 1000,
    "/v1/training-jobs?state=flying",
    "/v1/datasets/wdbc/versions/one",
    "/v1/datasets/wdbc/versions/-1",
    "/v1/datasets/wdbc/versions/4294967296",
    "/v1/datasets/%00",
    "/v1/usage?period=2026-13",
    "/v1/usage?period=yesterday",
    "/v1/traces/xyz",
    "/v1/traces/" + "0" * 32,
    "/v1/../etc/passwd",
    "/v1/datasets/..%2f..%2fetc",
    "/v1/endpoints/wdbc/predict",
]


async def test_addresses_that_are_wrong(world: World) -> None:
    for path in ADDRESSES:
        response = await world.client.get(path)
        assert 400 <= response.status_code < 500, (path, response.text)
        assert response.headers["content-type"] == "application/problem+json"


async def test_bodies_of_the_wrong_kind_and_size(world: World) -> None:
    check_problem(await world.client.post("/v1/datasets", content=b"name=a"), 400, "invalid_request")
    check_problem(await world.client.post("/v1/datasets", data={"name": "a"}), 415, "unsupported_media_type")
    packed = {**JSON, "content-encoding": "gzip"}
    check_problem(await world.client.post("/v1/datasets", content=b"{}", headers=packed), 415, "unsupported_media_type")
    problem = check_problem(await world.client.post("/v1/datasets", content=b" " * (2 << 20), headers=JSON), 413, "too_large")
    assert problem["limit_bytes"] == 1 << 20

    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 65536

    check_problem(await world.client.post("/v1/datasets", content=endless(), headers=JSON), 413, "too_large")


async def test_a_field_of_the_path_may_be_repeated_but_not_contradicted(world: World) -> None:
    body = {"name": "a", "steps": [{"dedupe": {}}]}
    assert (await world.client.post("/v1/datasets/a/transforms", json=body)).status_code == 202
    check_problem(await world.client.post("/v1/datasets/b/transforms", json=body), 400, "invalid_request")
