"""The document is one that tools accept, and says what the routes do."""

import re
from typing import Any

import jsonschema_rs
import pytest

from services.gateway.auth import PUBLIC_PATHS
from services.gateway.conftest import World


@pytest.fixture
async def document(world: World) -> dict[str, Any]:
    response = await world.client.get("/openapi.json", headers={"authorization": ""})
    answer: dict[str, Any] = response.json()
    return answer


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values()))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


async def test_every_route_is_documented_once(world: World, document: dict[str, Any]) -> None:
    documented = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    served = {(method, re.sub(r":\w+\}", "}", route.path)) for route in world.control.app.routes for method in route.methods} - {
        (method, path) for method, path in documented if method == "HEAD"
    }
    assert {each for each in served if each[0] != "HEAD"} == documented
    ids = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))


async def test_references_lead_somewhere_and_schemas_are_schemas(document: dict[str, Any]) -> None:
    for reference in references(document):
        found: Any = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


async def test_parameters_of_a_path_are_all_there(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), path
            assert "security" not in operation or path in PUBLIC_PATHS


async def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    tried = 0
    for operations in document["paths"].values():
        for operation in operations.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                if "example" in body:
                    schema = {**body["schema"], "components": document["components"]}
                    jsonschema_rs.validator_for(schema).validate(body["example"])
                    tried += 1
    assert tried > 10


async def test_words_of_the_contracts_are_there(document: dict[str, Any]) -> None:
    job = document["paths"]["/v1/training-jobs"]["post"]
    assert "202" in job["responses"]
    assert document["components"]["schemas"]["TrainingSpec"]["properties"]["epochs"]["description"] == "Default 20."


async def test_the_page_needs_nothing_else(world: World) -> None:
    response = await world.client.get("/docs", headers={"authorization": ""})
    page = response.text
    assert "/v1/training-jobs/{id}/events" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_health(world: World) -> None:
    assert (await world.client.get("/healthz")).json() == {"status": "ok"}
    ready = await world.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"], len(ready.json()["services"])) == (200, "ok", 6)
