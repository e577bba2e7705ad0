"""The replica's answers, without a socket."""

import asyncio
import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.modelkit.runtime import Runtime
from services.deployment.replica.app import MAX_BODY, Replica
from services.deployment.replica.replies import Request

TOKEN = "secret"
HEADERS = {"x-lepton-replica-token": TOKEN}


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


async def call_async(app, method, path, body=b"", headers=HEADERS):
    body = body if isinstance(body, bytes) else orjson.dumps(body)
    raw = {key.lower().encode(): value.encode() for key, value in headers.items()}
    request = Request(method.encode(), path, raw, received=asyncio.get_running_loop().time())
    reply = app.refuse(request)
    if reply is None:
        request.body = body
        answered = asyncio.get_running_loop().create_future()
        app.answer(request, answered.set_result)
        reply = await answered
    lines = [line.split(": ", 1) for line in reply.headers.decode().split("\r\n") if line]
    return Reply(reply.status, dict(lines), reply.body)


def call(app, method, path, body=b"", headers=HEADERS):
    return asyncio.run(call_async(app, method, path, body, headers))


@pytest.fixture
def app(runtime):
    return Replica(runtime, TOKEN, "m", "3")


def tensor(name, data, shape, datatype, **more):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def test_predict(app):
    reply = call(app, "POST", "/predict", {"instances": [{"a": 1, "b": "x"}, {"a": 2.5}]})
    assert (reply.status, reply.headers["x-lepton-rows"]) == (200, "2")
    for answer in reply.json()["predictions"]:
        assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert call(app, "POST", "/predict", {"instances": []}).json() == {"predictions": []}


@pytest.mark.parametrize("headers", [{}, {"x-lepton-replica-token": "Secret"}, {"x-lepton-replica-token": "s\u00fcr"}])
@pytest.mark.parametrize("path", ["/predict", "/healthz", "/v2", "/v2/models/m/infer", "/nothing"])
def test_nothing_is_answered_without_the_token(app, headers, path):
    assert call(app, "GET", path, headers=headers).status == 401


def test_a_wrong_record_is_named(app):
    reply = call(app, "POST", "/predict", {"instances": [{"a": 1}, {"a": "x"}, {"a": None}]})
    assert (reply.status, reply.headers["content-type"]) == (422, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["status"]) == ("invalid_record", 422)
    assert [error["field"] for error in problem["errors"]] == ["instances[1].a", "instances[2].a"]


BODIES = [
    *(b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000),
    b'{"instances": 5}',
    b'{"instances": [NaN]}',
    b'{"instances": [[]]}',
    b'{"instances": [{"a": NaN}]}',
    b'{"instances": [{"a": 1e999}]}',
    b'{"instances": [{"a": {"a": {}}}]}',
    b'{"instances": [{"a": 1, "b": "\\ud800"}]}',
    b'{"instances": [{"a": 1, "\\ud800": 2}]}',
    b'{"instances": ' + b"[" * 5000,
    b'{"instances": [{"a": ' + b"9" * 5000 + b"}]}",
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["/predict", "/v2/models/m/infer"])
def test_malformed_bodies_are_the_callers_fault(app, body, path):
    assert call(app, "POST", path, body).status in (400, 422)


def test_too_much_is_refused(app):
    assert call(app, "POST", "/predict", {"instances": [{"a": 1}] * 10_001}).status == 413
    assert call(app, "POST", "/predict", b"", headers={**HEADERS, "content-length": str(MAX_BODY + 1)}).status == 413


def test_paths_and_methods(app):
    assert call(app, "GET", "/predict").status == 405
    assert call(app, "GET", "/").status == 404
    assert call(app, "GET", "/healthz").json() == {"status": "ok"}


def test_what_the_model_takes_is_asked_for_once(numbers):
    asked = []

    class Asked(Runtime):
        @property
        def signature(self):
            asked.append(1)
            return super().signature

    app = Replica(Asked(numbers.package, numbers._model, "asked"), TOKEN, "m")
    first = len(asked)
    assert call(app, "POST", "/v2/models/m/infer", {"inputs": [tensor("rows", [1, 2], [1, 2], "FP32")]}).status == 200
    assert len(asked) == first > 0


def test_requests_of_one_turn_share_one_call_of_the_model(runtime, monkeypatch):
    app, calls = Replica(runtime, TOKEN), []
    model = runtime._model
    monkeypatch.setattr(runtime, "_model", lambda rows: calls.append(len(rows)) or model(rows))

    async def together():
        bodies = [{"instances": [{"a": float(i)}] * (i + 1)} for i in range(5)]
        return await asyncio.gather(*(call_async(app, "POST", "/predict", body) for body in bodies))

    replies = asyncio.run(together())
    assert calls == [15]
    assert [len(reply.json()["predictions"]) for reply in replies] == [1, 2, 3, 4, 5]
    alone = call(app, "POST", "/predict", {"instances": [{"a": 3.0}]}).json()["predictions"][0]["probabilities"]
    assert replies[3].json()["predictions"][0]["probabilities"] == pytest.approx(alone)


def test_a_large_batch_is_answered_from_a_thread(app):
    reply = call(app, "POST", "/predict", {"instances": [{"a": 1}] * 10_000})
    assert len(reply.json()["predictions"]) == 10_000


def test_a_model_that_fails_is_500_and_the_next_request_is_answered(runtime, monkeypatch):
    app = Replica(runtime, TOKEN)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_model", lambda rows: 1 / 0)
        assert call(app, "POST", "/predict", {"instances": [{"a": 1}]}).json()["code"] == "internal"
    assert call(app, "POST", "/predict", {"instances": [{"a": 1}]}).status == 200


def test_protocol_metadata_and_health(app):
    assert "binary_tensor_data" in call(app, "GET", "/v2").json()["extensions"]
    assert call(app, "GET", "/v2/health/ready").json() == {"ready": True, "live": True}
    assert call(app, "GET", "/v2/health/live").json() == {"live": True}
    assert call(app, "GET", "/v2/models/m/ready").json()["ready"]
    metadata = call(app, "GET", "/v2/models/m/versions/3").json()
    assert [(item["name"], item["datatype"], item["shape"]) for item in metadata["inputs"]] == [
        ("a", "FP64", [-1, 1]),
        ("b", "BYTES", [-1, 1]),
    ]
    assert [(item["name"], item["shape"]) for item in metadata["outputs"]] == [("prediction", [-1]), ("probabilities", [-1, 2])]
    assert "error" in call(app, "GET", "/v2/models/other").json()
    assert call(app, "GET", "/v2/models/m/versions/4").status == 404


def test_infer_says_the_same_as_predict(app):
    request = {"id": "7", "inputs": [tensor("b", ["x", "y"], [2], "BYTES"), tensor("a", [[1], [2.5]], [2, 1], "FP64")]}
    reply = call(app, "POST", "/v2/models/m/infer", request)
    answer = reply.json()
    assert (answer["id"], answer["model_name"], answer["model_version"], reply.headers["x-lepton-rows"]) == ("7", "m", "3", "2")
    prediction, probabilities = answer["outputs"]
    expected = call(app, "POST", "/predict", {"instances": [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]}).json()["predictions"]
    assert prediction["data"] == [item["prediction"] for item in expected]
    assert (prediction["datatype"], probabilities["shape"]) == ("BYTES", [2, 2])
    assert probabilities["data"] == pytest.approx([p for item in expected for p in item["probabilities"].values()])


def test_unversioned_models_and_the_outputs_filter(numbers):
    app = Replica(numbers, TOKEN, "m")
    request = {"inputs": [tensor("a", [1], [1], "FP32"), tensor("b", [2], [1, 1], "INT64")], "outputs": [{"name": "prediction"}]}
    answer = call(app, "POST", "/v2/models/m/infer", request).json()
    assert "model_version" not in answer
    assert [output["name"] for output in answer["outputs"]] == ["prediction"]
    assert answer["outputs"][0]["datatype"] == "FP64"


def test_binary_tensors_both_ways(app):
    values = np.array([1.0, 2.5])
    texts = b"".join(len(t).to_bytes(4, "little") + t for t in (b"x", b"y"))
    inputs = [
        {"name": "a", "shape": [2, 1], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
        {"name": "b", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(texts)}},
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    headers = {**HEADERS, "Inference-Header-Content-Length": str(len(head))}
    reply = call(app, "POST", "/v2/models/m/infer", head + values.tobytes() + texts, headers)
    length = int(reply.headers["inference-header-content-length"])
    answer, tail = json.loads(reply.body[:length]), reply.body[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    probabilities = np.frombuffer(tail[sizes[0] :], "<f8").reshape(2, 2)
    assert sum(sizes) == len(tail)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    for broken in (head + values.tobytes(), head + values.tobytes() + texts + b"x", head):
        assert call(app, "POST", "/v2/models/m/infer", broken, headers).status == 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datatype": "FP99"}, "not among"),
        ({"datatype": None}, "not among"),
        ({"shape": [3]}, "asks for 3 elements"),
        ({"shape": [-1]}, "whole numbers"),
        ({"shape": [1 << 62, 1 << 62]}, "too many"),
        ({"shape": [1, 2], "data": [1, 2]}, "[N] or [N, 1]"),
        ({"data": ["x", "y"]}, "other values"),
        ({"data": [[1], [2, 3]]}, "not a list of numbers"),
        ({"data": [1, None]}, "other values"),
        ({"data": [True, False]}, "other values"),
        ({"name": "aa"}, "did you mean 'a'"),
        ({"datatype": "BYTES", "data": ["1", "2"]}, "takes FP64"),
        ({"datatype": "UINT8", "data": [1, 300]}, "beyond UINT8"),
        ({"shape": [0], "data": []}, "no rows"),
        ({"parameters": {"binary_data_size": -5}}, "does not fit"),
    ],
)
def test_wrong_tensors_are_said_in_words(app, change, words):
    reply = call(app, "POST", "/v2/models/m/infer", {"inputs": [{**tensor("a", [1, 2], [2], "FP64"), **change}]})
    assert reply.status == 400
    assert words in reply.json()["error"]


def test_nan_in_a_tensor_is_refused(numbers):
    app = Replica(numbers, TOKEN, "m")
    inputs = [{"name": n, "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": 8}} for n in ("a", "b")]
    head = orjson.dumps({"inputs": inputs})
    headers = {**HEADERS, "Inference-Header-Content-Length": str(len(head))}
    assert call(app, "POST", "/v2/models/m/infer", head + np.array([1, np.nan]).tobytes(), headers).status == 400


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("shape", [[2, 4, 4], [2, 4, 4, 1]])
def test_pictures_as_tensors(pictures, datatype, shape):
    app = Replica(pictures, TOKEN, "m")
    data = list(range(32))
    answer = call(app, "POST", "/v2/models/m/infer", {"inputs": [tensor("image", data, shape, datatype)]}).json()
    rows = np.arange(32).reshape(2, 4, 4).tolist()
    expected = call(app, "POST", "/predict", {"instances": [{"image": row} for row in rows]}).json()["predictions"]
    assert answer["outputs"][0]["data"] == [item["prediction"] for item in expected]


KEYS = st.sampled_from(["a", "b", "name", "data", "shape", "parameters"])
LEAVES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63) | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=6)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"]) | JSON},
    optional={
        "shape": st.just([1]) | JSON,
        "datatype": st.sampled_from(["FP64", "BYTES", "BOOL", "UINT8"]) | JSON,
        "data": JSON,
        "parameters": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={"instances": st.lists(JSON) | JSON, "inputs": st.lists(TENSOR) | JSON, "outputs": JSON, "id": JSON, "parameters": JSON},
    )
)
def test_no_body_makes_a_replica_fail(runtime, body):
    app = Replica(runtime, TOKEN, "m")
    for path in ("/predict", "/v2/models/m/infer"):
        assert call(app, "POST", path, body).status < 500
