"""What a user gets wrong is answered at once: what, where, what would be right; and nothing is stored."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import leptonai as la
from tests.platform import Platform, lepton

NUMBERS = "a,b,target\n" + "".join(f"{n},{n * 2}.5,{n % 3}\n" for n in range(30))
WORDS = "a,kind\n" + "".join(f"{n},{'yes' if n % 2 else 'no'}\n" for n in range(30))


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[httpx.Client]:
    with platform.http() as http:
        for name, content in (
            ("numbers", NUMBERS),
            ("words", WORDS),
            ("one-class", "a,kind\n1,x\n2,x\n3,x\n"),
            ("gaps", "a,target\n1,2\n2,\n3,4\n4,5\n5,6\n"),
            ("few-rows", "a,kind\n1,x\n2,y\n"),
        ):
            assert http.put(f"/v1/datasets/{name}/content", params={"filename": f"{name}.csv"}, content=content).status_code == 201
        yield http


def problem(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"].startswith("https://")
    assert len(body["detail"]) > 10
    assert body["trace_id"] == answer.headers["x-lepton-trace-id"]
    return body


def test_keys(platform: Platform, http: httpx.Client) -> None:
    with platform.http("wrong-key") as stranger:
        problem(stranger.get("/v1/me"), 401)
    made = http.post("/v1/api-keys", json={"name": "soon gone"}).json()
    with platform.http(made["secret"]) as other:
        assert other.get("/v1/me").status_code == 200
        http.delete(f"/v1/api-keys/{made['api_key']['id']}").raise_for_status()
        problem(other.get("/v1/me"), 401)


def test_another_workspace_s_things_do_not_exist(platform: Platform, http: httpx.Client) -> None:
    rival = http.post("/v1/workspaces", json={"name": "rival"}).json()
    with platform.http(rival["secret"]) as other:
        for path in (
            "/v1/datasets/numbers",
            "/v1/datasets/numbers/versions/1",
            "/v1/datasets/numbers/versions/1/content",
            "/v1/datasets/numbers/versions/1/preview",
        ):
            problem(other.get(path), 404)
        job = {"dataset": "numbers@1", "task": "regression", "target": "target", "output_model": "m", "model": {"architecture": "linear"}}
        problem(other.post("/v1/training-jobs", json=job), 404)
        problem(other.delete("/v1/datasets/numbers"), 404)
        assert other.get("/v1/datasets").json()["datasets"] == []


def test_names(http: httpx.Client) -> None:
    problem(http.post("/v1/datasets", json={"name": "numbers"}), 409)
    body = problem(http.post("/v1/datasets", json={"name": "Not A Name!"}), 400, 422)
    assert body["errors"][0]["field"] == "name"
    assert "lower-case" in body["errors"][0]["message"]
    problem(http.put("/v1/datasets/Not_A_Name/content", content=NUMBERS), 400, 404, 422)
    assert "numbers" in problem(http.get("/v1/datasets/numbrs"), 404)["detail"]


def archive(*names: str, content: bytes = b"x") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as files:
        for name in names:
            files.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "empty"),
        ("header.csv", b"a,b\n", "row"),
        ("cut.csv", b'a,b\n1,"two\n', "quote"),
        ("binary.csv", b"a,b\n\x00\x01\x02,3\n", ""),
        ("ragged.csv", b"a,b\n1,2\n3,4,5\n", "line 3"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "'a'"),
        ("latin.csv", b"a,b\n1,caf\xe9\n", "UTF-8"),
        ("up.zip", archive("../../etc/passwd"), ".."),
        ("bomb.zip", archive("cats/1.png", content=b"\0" * 30_000_000), ""),
        ("text.zip", archive("cats/1.png", "dogs/1.png"), "cats/1.png"),
        ("cut.zip", archive("cats/1.png")[:-10], ""),
        ("fake.parquet", b"PAR1 and then nothing of use PAR1", ""),
    ],
)
def test_files(http: httpx.Client, name: str, content: bytes, words: str) -> None:
    answer = http.put("/v1/datasets/broken/content", params={"filename": name}, content=content)
    body = problem(answer, 400, 413, 415, 422)
    assert words in json.dumps(body, ensure_ascii=False), body
    problem(http.get("/v1/datasets/broken"), 404)


JOB = {
    "dataset": "numbers@1",
    "task": "regression",
    "target": "target",
    "output_model": "refused",
    "model": {"architecture": "mlp"},
    "training": {"epochs": 2},
}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"target": "targte"}, "target", "target"),
        ({"dataset": "words@1", "target": "kind"}, "target", "kind"),
        ({"dataset": "one-class@1", "task": "classification", "target": "kind"}, "target", "class"),
        ({"dataset": "gaps@1"}, "target", ""),
        ({"dataset": "few-rows@1", "task": "classification", "target": "kind"}, "", "row"),
        ({"model": {"architecture": "cnn"}}, "model.architecture", ""),
        ({"model": {"architecture": "mpl"}}, "model.architecture", "mlp"),
        ({"model": {"architecture": "mlp", "params": {"hiden": [4]}}}, "model.params", "hidden"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate", "greater than 0"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate", "greater than 0"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate", "number"),
        ({"training": {"epoch": 3}}, "training.epoch", "epochs"),
        ({"dataset": "numbers@9"}, "", "numbers"),
        ({"resources": {"accelerator": "gpu", "count": 8}}, "resources", ""),
    ],
)
def test_jobs(http: httpx.Client, change: dict[str, Any], field: str, words: str) -> None:
    body = problem(http.post("/v1/training-jobs", json={**JOB, **change}), 400, 404, 422)
    assert any(e["field"].startswith(field) for e in body["errors"]) or not field, body
    assert words in json.dumps(body), body
    assert "refused" not in [j["output_model"] for j in http.get("/v1/training-jobs").json()["training_jobs"]]


@pytest.mark.parametrize("body", ['{"training": {"learning_rate": NaN}}', '{"training": {"learning_rate": 1e999}}', "{", "[]", '"x"'])
def test_bodies_that_are_no_bodies(http: httpx.Client, body: str) -> None:
    problem(http.post("/v1/training-jobs", content=body, headers={"content-type": "application/json"}), 400, 422)


def test_quota(platform: Platform, http: httpx.Client) -> None:
    small = http.post("/v1/workspaces", json={"name": "small"}).json()
    with platform.http(small["secret"]) as other:
        limit = next(q["limit"] for q in other.get("/v1/me").json()["quotas"] if q["metric"] == "api_keys")
        answers = [other.post("/v1/api-keys", json={"name": f"key {n}"}) for n in range(limit + 1)]
        body = problem(answers[-1], 403)
        assert body["code"] == "quota_exceeded"
        assert body["limit"] == limit
        assert body["remaining"] == 0
        assert "pro" in json.dumps(body["plans"])


def test_the_client_repeats_the_advice(platform: Platform, http: httpx.Client) -> None:
    with platform.client() as client, pytest.raises(la.InvalidData) as refused:
        client.training_jobs.create({**JOB, "target": "targte"})
    assert "did you mean" in str(refused.value) or "target" in str(refused.value)
    assert refused.value.trace_id in str(refused.value)


def test_the_command_line_says_it_in_two_lines(platform: Platform, http: httpx.Client) -> None:
    done = lepton("train", "submit", "-f", "-", env=platform.env, stdin=json.dumps({**JOB, "target": "targte"}))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 2
    assert "target" in done.stderr


def test_a_hundred_malformed_requests(http: httpx.Client) -> None:
    bodies = [b"", b"\xff\xfe", b"null", b"[" * 5000, b'{"name":' * 100, b'{"name": "\\ud800"}', b'{"name": 1e400}', b"{}", b'{"name": {}}']
    paths = [
        ("POST", "/v1/datasets"),
        ("POST", "/v1/training-jobs"),
        ("POST", "/v1/endpoints"),
        ("POST", "/v1/listings"),
        ("POST", "/v1/api-keys"),
        ("PATCH", "/v1/datasets/numbers"),
        ("POST", "/v1/endpoints/nothing/predict"),
        ("POST", "/v2/models/nothing/infer"),
        ("POST", "/v1/datasets/numbers/transforms"),
        ("PUT", "/v1/members/x@y"),
        ("GET", "/v1/datasets?page_size=-1"),
        ("GET", "/v1/datasets/numbers/versions/99999999999999999999"),
    ]
    for method, path in paths:
        for body in bodies:
            answer = http.request(method, path, content=body, headers={"content-type": "application/json"})
            assert answer.status_code < 500, f"{method} {path} {body[:40]!r}: {answer.status_code} {answer.text}"
    for header in ("Idempotency-Key", "traceparent", "Last-Event-ID"):
        assert http.get("/v1/datasets", headers={header: "x" * 3000}).status_code < 500
