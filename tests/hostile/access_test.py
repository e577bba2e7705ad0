"""Every route with no key, a wrong one, a revoked one, one that may only look, and one of another workspace."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import CANARY, RECORD, Town
from tests.platform import eventually

PUBLIC = {"/healthz", "/readyz", "/docs", "/openapi.json"}
MUTATIONS = ("POST", "PUT", "PATCH", "DELETE")
# Anybody in a workspace may begin one of their own.
FOR_EVERYBODY = {("POST", "/v1/workspaces")}


def operations(town: Town) -> list[tuple[str, str]]:
    with town.platform.http("") as http:
        paths: dict[str, Any] = http.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def fill(path: str, town: Town) -> str:
    """The victim's own, whatever the path asks for."""
    names = {
        "/v1/datasets/": "canary-data",
        "/v1/models/": "canary-model",
        "/v1/endpoints/": "canary-endpoint",
        "/v1/listings/": "line-for-sale",
        "/v1/training-jobs/": town.job,
        "/v1/api-keys/": town.key_id,
        "/v1/invoices/": town.invoice,
        "/v1/traces/": town.trace,
        "/v1/compute/allocations/": town.allocation,
        "/v1/compute/nodes/": "local",
        "/v1/workspaces/": "victim",
        "/v1/members/": "canary@example.com",
        "/v1/plans/": "trial",
        "/v2/models/": "canary-endpoint",
    }
    first = next((name for prefix, name in names.items() if path.startswith(prefix)), "")
    path = re.sub(r"\{(name|slug|id|model|email)\}|(?<=invoices/)\{number\}", first, path)
    return re.sub(r"\{(number|version)\}", "1", path).replace("{path}", "model.json")


def send(http: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    if path.endswith("/events"):
        with http.stream(method, path, **more) as stream:
            if stream.status_code != 200:
                stream.read()
            return stream
    return http.request(method, path, **more)


def body(method: str, path: str) -> dict[str, Any]:
    if method not in MUTATIONS or method == "DELETE":
        return {}
    if path.endswith("/content"):
        return {"content": b"a,b\n1,2\n"}
    return {"json": {"instances": [RECORD]} if path.endswith(("/predict", "/invoke")) else {}}


def words(answer: httpx.Response) -> str:
    """What is said, in whichever shape."""
    said = answer.json()
    return str(said["detail"] if "detail" in said else said["error"]["message"])


def test_without_a_key_that_works_nothing_is_said(town: Town) -> None:
    wrong = ["", "wrong-key", town.keys["revoked"], town.keys["victim"][:-1], town.keys["victim"] + "x", "lpt_" + "a" * 43]
    answers = set()
    for key in wrong:
        with town.platform.http(key) as http:
            for method, template in operations(town):
                if template in PUBLIC:
                    continue
                answer = send(http, method, fill(template, town), **body(method, template))
                assert answer.status_code == 401, f"{method} {template}: {answer.status_code}"
                assert CANARY not in re.sub(r'"instance":"[^"]*"', "", answer.text)
                answers.add((bool(key), words(answer) if template[:3] == "/v1" else ""))
    # One answer for every key that does not work, whatever is wrong with it and whatever it asks for.
    assert len({text for has_key, text in answers if has_key and text}) == 1


def test_headers_that_name_two_keys_or_another_scheme(town: Town) -> None:
    key = town.keys["victim"]
    for headers in (
        [("authorization", f"Bearer {town.keys['rival']}"), ("authorization", f"Bearer {key}")],
        [("authorization", f"Bearer {town.keys['rival']}"), ("x-api-key", key)],
        [("authorization", f"Basic {key}")],
        [("authorization", key)],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {key} {key}")],
        [("cookie", f"key={key}")],
    ):
        assert httpx.get(f"{town.platform.url}/v1/me", headers=headers).status_code == 401, headers
    assert httpx.get(f"{town.platform.url}/v1/me", params={"api_key": key, "key": key}).status_code == 401


def test_paths_beside_the_public_ones_are_not_public(town: Town) -> None:
    with town.platform.http("") as http:
        for path in (
            "/docs/",
            "/docs/../v1/me",
            "//docs",
            "/healthz/x",
            "/openapi.json/",
            "/DOCS",
            "/healthz%2f",
            "/docs;/v1/me",
            "/redoc",
        ):
            assert http.get(path).status_code in (401, 404), path
            assert http.get(path).status_code == 401 or "me" not in path


@pytest.fixture(params=["viewer"])
def looker(town: Town, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with town.http(request.param) as http:
        yield http


def test_a_viewer_changes_nothing(town: Town, looker: httpx.Client) -> None:
    before = looker.get("/v1/datasets/canary-data").json(), looker.get("/v1/endpoints/canary-endpoint").json()
    for method, template in operations(town):
        if method not in MUTATIONS or (method, template) in FOR_EVERYBODY:
            continue
        predicts = template.endswith(("/predict", "/infer"))
        answer = send(looker, method, fill(template, town), **body(method, template))
        allowed = (200, 400, 422) if predicts else (400, 403, 404, 422)
        assert answer.status_code in allowed, f"{method} {template}: {answer.status_code} {answer.text}"
    after = looker.get("/v1/datasets/canary-data").json(), looker.get("/v1/endpoints/canary-endpoint").json()
    assert before == after


VALID: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/datasets"): {"name": "viewer-made"},
    ("PATCH", "/v1/datasets/canary-data"): {"description": "x"},
    ("POST", "/v1/datasets/canary-data/transforms"): {"version": 1, "steps": [{"dedupe": {}}]},
    ("POST", "/v1/training-jobs"): {
        "dataset": "canary-data@1",
        "task": "regression",
        "target": "y",
        "output_model": "m",
        "model": {"architecture": "linear"},
    },
    ("POST", "/v1/endpoints"): {"name": "viewer-made", "model": "canary-model@1"},
    ("PATCH", "/v1/endpoints/canary-endpoint"): {"replicas": 0},
    ("POST", "/v1/listings/line-for-sale/subscribe"): {},
    ("PATCH", "/v1/listings/line-for-sale"): {"title": "Mine"},
    ("POST", "/v1/api-keys"): {"name": "viewer-made"},
    ("PUT", "/v1/members/viewer@example.com"): {"role": "owner"},
    ("PATCH", "/v1/workspaces/victim"): {"display_name": "x"},
    ("POST", "/v1/invoices"): {},
    ("PUT", "/v1/plans/trial"): {"display_name": "x"},
}


@pytest.mark.parametrize("operation", VALID, ids=lambda o: " ".join(o))
def test_a_viewer_s_valid_requests_are_refused_as_well(town: Town, operation: tuple[str, str]) -> None:
    with town.http("viewer") as http:
        answer = http.request(*operation, json=VALID[operation])
        assert answer.status_code == 403, answer.text


def test_an_editor_is_no_administrator(town: Town) -> None:
    with town.http("editor") as http:
        for (method, path), value in VALID.items():
            if path.startswith(("/v1/api-keys", "/v1/members", "/v1/workspaces/", "/v1/invoices", "/v1/plans")):
                assert http.request(method, path, json=value).status_code == 403, path
        assert http.get("/v1/api-keys").status_code == 403


def test_an_owner_is_no_operator(town: Town) -> None:
    with town.http("victim") as http:
        assert http.put("/v1/plans/trial", json={"display_name": "x"}).status_code == 403
        for node in http.get("/v1/compute/nodes").json()["nodes"]:
            assert http.patch(f"/v1/compute/nodes/{node['name']}", json={"schedulable": False}).status_code in (400, 403, 422)
        for role in ("operator", 5, 99, -1):
            assert http.put("/v1/members/x@example.com", json={"role": role}).status_code in (400, 403, 422), role
            assert http.post("/v1/api-keys", json={"name": "up", "role": role}).status_code in (400, 403, 422), role
        assert http.patch("/v1/workspaces/rival", json={"display_name": "mine"}).status_code == 404


def test_another_workspace_s_things_are_not_there(town: Town) -> None:
    """By name and by id, in whatever way they are asked for; and nobody hints at them."""
    with town.http("rival") as rival, town.platform.http() as operator:
        for http in (rival, operator):
            for method, template in operations(town):
                path = fill(template, town)
                shared = template.startswith(("/v1/listings/", "/v1/plans", "/v1/compute/nodes")) or "{" not in template
                # Names of what is made are the caller's own to give.
                if template in ("/v1/datasets/{name}/content", "/v1/members/{email}") and method == "PUT":
                    continue
                if shared or (http is operator and template.startswith("/v1/workspaces/")) or template in PUBLIC:
                    continue
                answer = send(http, method, path, **body(method, template))
                assert answer.status_code in (404, 400, 422), f"{method} {path}: {answer.status_code} {answer.text[:300]}"
                assert answer.status_code == 404 or method in MUTATIONS or path.startswith("/v2"), f"{method} {path}: {answer.text[:300]}"


def test_nothing_of_the_victim_s_is_hinted_at(town: Town) -> None:
    with town.http("rival") as rival:
        for method, path, value in (
            ("GET", "/v1/datasets/kanary-data", None),
            ("GET", "/v1/models/kanary-model", None),
            ("GET", "/v1/models/kanary-model/versions/1", None),
            ("GET", "/v1/endpoints/kanary-endpoint", None),
            ("POST", "/v1/endpoints/kanary-endpoint/predict", {"instances": [RECORD]}),
            ("POST", "/v2/models/kanary-endpoint/infer", {"inputs": []}),
            ("GET", "/v1/training-jobs/kanary-model", None),
            ("GET", f"/v1/training-jobs/{town.job[:-1]}", None),
            ("GET", f"/v1/invoices/{town.invoice[:-1]}9", None),
            ("DELETE", "/v1/api-keys/kanary-editor", None),
            ("DELETE", "/v1/members/kanary@example.com", None),
            ("GET", "/v1/workspaces/viktim", None),
            ("PATCH", "/v1/listings/line-for-sal", {"title": "x"}),
            ("POST", "/v1/listings", {"slug": "x-1", "title": "x", "card": "# x", "endpoint": "kanary-endpoint", "price": {}}),
            ("POST", "/v1/endpoints", {"name": "x", "model": "kanary-model@1"}),
            ("POST", "/v1/api-keys", {"name": "x", "member": "kanary@example.com"}),
            (
                "POST",
                "/v1/training-jobs",
                {"dataset": "kanary-data@1", "task": "regression", "target": "y", "output_model": "m", "model": {"architecture": "linear"}},
            ),
            (
                "POST",
                "/v1/training-jobs",
                {
                    "dataset": "canary-data@1",
                    "task": "regression",
                    "target": "y",
                    "output_model": "m",
                    "model": {"architecture": "linear", "init": "canary-model@1"},
                },
            ),
        ):
            answer = rival.request(method, path, json=value)
            assert 400 <= answer.status_code < 500, f"{method} {path}: {answer.text}"
            # What was asked for may be repeated.
            said = answer.text.replace("'canary-data'", "").replace("'canary-model'", "")
            assert CANARY not in said, f"{method} {path}: {answer.text}"
            assert "victim" not in said or "viktim" in path, f"{method} {path}: {answer.text}"


def test_lists_are_of_the_workspace(town: Town) -> None:
    with town.http("rival") as rival:
        for method, path in operations(town):
            if method == "GET" and "{" not in path and path not in PUBLIC and path != "/v1/listings":
                answer = rival.get(path)
                assert CANARY not in answer.text, path
                assert "victim" not in answer.text, path
                assert town.job not in answer.text
        # Tokens of pages are no way in.
        with town.http("victim") as http:
            http.put("/v1/datasets/canary-more/content", params={"filename": "a.csv"}, content=b"a,b\n1,2\n")
            token = http.get("/v1/datasets", params={"page_size": 1}).json()["next_page_token"]
        assert token
        assert CANARY not in rival.get("/v1/datasets", params={"page_token": token}).text


def test_a_trace_is_not_shared_by_naming_it(town: Town) -> None:
    """Callers choose trace ids and parents; who names another's span must show nothing and see nothing."""
    with town.http("victim") as http:
        spans = http.get(f"/v1/traces/{town.trace}").json()["spans"]
    span = spans[0]["span_id"]
    with town.http("rival") as rival, town.http("victim") as http:
        headers = {"traceparent": f"00-{town.trace}-{span}-01"}
        rival.get("/v1/datasets/rival-secret", headers=headers)
        own = eventually(lambda: (answer := rival.get(f"/v1/traces/{town.trace}")).status_code == 200 and answer)
        assert own, "nobody who names a parent of somebody else's loses sight of their own request"
        assert CANARY not in own.text
        assert "rival-secret" in own.text
        assert "rival-secret" not in http.get(f"/v1/traces/{town.trace}").text
