"""/openapi.json against a real platform: whatever fits its schemas, and what does not, is answered as the document says; never by a 5xx.

Half of the requests name things that exist, so that they reach further than the first 404.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.platform import Platform, eventually, running

EXAMPLES = 12
# Each of them begins a process, keeps a stream open, or takes long to make up.
FEWER = {
    "PUT /v1/datasets/{name}/content": 6,
    "POST /v1/datasets/{name}/transforms": 8,
    "POST /v1/listings": 8,
    "GET /v1/training-jobs/{id}/events": 6,
}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("fuzzed")) as platform:
        yield platform


@pytest.fixture(scope="module")
def existing(platform: Platform) -> dict[str, dict[str, Any]]:
    """By the beginning of a path: what its parameters are for things that are there."""
    with platform.client() as client:
        client.datasets.upload("numbers", b"x,y\n" + b"".join(b"%d,%d\n" % (n, 2 * n) for n in range(40)), filename="numbers.csv")
        spec = {"dataset": "numbers@1", "task": "regression", "target": "y", "output_model": "numbers", "architecture": "linear"}
        job = client.training_jobs.wait(client.training_jobs.create(**spec, epochs=2), progress=False)
        client.endpoints.create("numbers", job.model_version)
        client.endpoints.wait_ready("numbers")
        card = "---\nlicense: apache-2.0\n---\n# Numbers\n"
        client.listings.create("numbers", endpoint="numbers", title="Numbers", card=card, price="0.001")
        named = {"name": "numbers", "number": "1", "path": "weights.safetensors", "slug": "numbers", "model": "numbers", "version": "1"}
        me = client.account.me()
        assert me.workspace
        return {
            "/v1/datasets/{name}": named,
            "/v1/models/{name}": named,
            "/v1/endpoints/{name}": named,
            "/v1/listings/{slug}": named,
            "/v2/models/{model}": named,
            "/v1/training-jobs/{id}": {"id": job.id},
            "/v1/traces/{id}": {"id": job.trace_id},
            "/v1/workspaces/{name}": {"name": me.workspace.name},
            "/v1/compute/nodes/{name}": {"name": next(iter(client.compute.nodes())).name},
        }


def known(existing: dict[str, dict[str, Any]], operation: Any) -> dict[str, Any]:
    """Parameters that lead to something; none for what would delete it or take the machine away."""
    if operation.method.upper() == "DELETE" or (operation.method.upper() == "PATCH" and "/compute/" in operation.path):
        return {}
    found = next((values for start, values in existing.items() if operation.path.startswith(start)), {})
    return {name: value for name, value in found.items() if f"{{{name}}}" in operation.path}


@pytest.mark.slow
def test_every_operation(platform: Platform, existing: dict[str, dict[str, Any]], subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_url(f"{platform.url}/openapi.json")
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {platform.key}"
        for found in schema.get_all_operations():
            operation = found.ok()
            with subtests.test(operation.label):
                fuzz(operation, known(existing, operation), session, platform)
    with platform.http() as http:
        assert http.get("/readyz").json()["status"] == "ok"
    assert '"level":"critical"' not in platform.log()


def fuzz(operation: Any, values: dict[str, Any], session: requests.Session, platform: Platform) -> None:
    modes = [operation.as_strategy(GenerationMode.POSITIVE), operation.as_strategy(GenerationMode.NEGATIVE)]
    if values:
        modes += [operation.as_strategy(mode, path_parameters=values) for mode in GenerationMode]
    count = FEWER.get(operation.label, EXAMPLES)

    @seed(zlib.crc32(operation.label.encode()))
    @settings(
        max_examples=2 * count if values else count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(case=st.one_of(modes))
    def ask(case: Case) -> None:
        response = case.call(base_url=platform.url, session=session, timeout=30)
        # That something is not offered on one machine is no fault of the server.
        checks = [check for check in CHECKS if response.status_code != 501 or check is not schemathesis.checks.not_a_server_error]
        case.validate_response(response, checks=checks)

    ask()


def test_answers_that_are_known_to_be_good(platform: Platform, existing: dict[str, dict[str, Any]]) -> None:
    """Each GET of a thing that exists answers 200, in the schema of its document."""
    # Whatever has been asked of it before.
    with platform.client() as client:
        client.endpoints.update("numbers", model="numbers@1", replicas=1)
        client.endpoints.wait_ready("numbers")
    schema = schemathesis.openapi.from_url(f"{platform.url}/openapi.json")
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        values = known(existing, operation)
        if operation.method.upper() != "GET" or ("{" in operation.path and not values):
            continue
        case = operation.Case(path_parameters=values)
        response = case.call(base_url=platform.url, headers={"authorization": f"Bearer {platform.key}"}, timeout=30)
        assert response.status_code == 200, (operation.label, response.text)
        case.validate_response(response, checks=CHECKS)
        asked += 1
    assert asked > 35


def test_what_failed_is_told_as_documented(platform: Platform) -> None:
    """A failed version holds a problem of its own, smaller than the document that a refused request gets."""
    schema = schemathesis.openapi.from_url(f"{platform.url}/openapi.json")
    operation = schema["/v1/datasets/{name}/versions/{number}"]["GET"]
    with platform.http() as http:
        accepted = http.put("/v1/datasets/broken/content", params={"wait": 0}, content=b"a,a\n1,2\n")
        assert accepted.status_code == 202, accepted.text
        failed = eventually(lambda: http.get("/v1/datasets/broken/versions/1").json()["state"] == "failed")
        assert failed
    case = operation.Case(path_parameters={"name": "broken", "number": 1})
    response = case.call(base_url=platform.url, headers={"authorization": f"Bearer {platform.key}"}, timeout=30)
    assert response.json()["error"]["errors"]
    case.validate_response(response, checks=CHECKS)
