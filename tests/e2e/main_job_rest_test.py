"""The main job with a plain HTTP client: the REST names, bodies and headers that clients are written against."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import triton_to_np_dtype

from services.standalone.demo import data
from tests.platform import Platform, eventually

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
STEPS = [
    {"rename": {"column": "Diagnosis", "to": "diagnosis"}},
    {"drop_missing": {"columns": ["diagnosis"]}},
    {"derive": {"column": "diagnosis", "expression": "upper(substr(trim(diagnosis), 1, 1))"}},
    {"dedupe": {}},
    {"impute": {"strategy": "median"}},
    {"split": {"test": 0.2, "seed": 7, "stratify": "diagnosis"}},
]
CARD = "---\nlicense: apache-2.0\n---\n# Breast check\nSays whether a tumour is malignant.\n"


@pytest.fixture
def http(platform: Platform) -> Iterator[httpx.Client]:
    with platform.http() as http:
        yield http


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-lepton-trace-id"]
    return answer.json()


def ended(http: httpx.Client, job_id: str, timeout: float = 120) -> dict[str, Any]:
    def check() -> dict[str, Any] | None:
        job: dict[str, Any] = ok(http.get(f"/v1/training-jobs/{job_id}"))
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None

    job = eventually(check, timeout)
    assert job, "the job did not end"
    return dict(job)


def ready(http: httpx.Client, path: str, timeout: float = 60) -> dict[str, Any]:
    def check() -> dict[str, Any] | None:
        thing: dict[str, Any] = ok(http.get(path))
        return thing if thing["state"] in ("ready", "failed") else None

    thing = eventually(check, timeout)
    assert thing and thing["state"] == "ready", thing
    return dict(thing)


def test_data_to_money(platform: Platform, http: httpx.Client) -> None:
    # Upload: typed at once, with a profile.
    version = ok(http.put("/v1/datasets/wdbc/content", params={"filename": "wdbc.csv"}, content=data.dirty_table()), 201)
    assert (version["number"], version["state"], version["rows"], len(version["columns"])) == (1, "ready", 599, 31)
    types = {c["name"]: c["type"] for c in version["columns"]}
    assert (types["mean_radius"], types["Diagnosis"]) == ("double", "string")
    profile = ok(http.get("/v1/datasets/wdbc/versions/1/profile"))
    assert profile["duplicate_rows"] > 0
    assert next(c for c in profile["columns"] if c["name"] == "mean_radius")["nulls"] > 0
    assert len(ok(http.get("/v1/datasets/wdbc/versions/1/preview", params={"rows": 5}))["rows"]) == 5

    # Transform: a new version with lineage and splits.
    answer = http.post("/v1/datasets/wdbc/transforms", json={"version": 1, "steps": STEPS})
    assert answer.status_code in (201, 202), answer.text
    cleaned = ready(http, "/v1/datasets/wdbc/versions/2")
    assert cleaned["lineage"]["source"] == "wdbc@1"
    assert [s["name"] for s in cleaned["splits"]] == ["train", "test"]
    parquet = http.get("/v1/datasets/wdbc/versions/2/content", params={"split": "test"})
    assert parquet.content[:4] == b"PAR1"

    # Train, watching by server-sent events.
    job = ok(http.post("/v1/training-jobs", json=JOB), 202)
    events = []
    with http.stream("GET", f"/v1/training-jobs/{job['id']}/events", timeout=120) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event:"):
                events.append(line.removeprefix("event:").strip())
    assert {"job", "metric"} <= set(events)
    job = ended(http, job["id"])
    assert job["state"] == "succeeded", job
    assert job["model_version"] == "wdbc@1"
    assert job["metrics"]["accuracy"] >= 0.94
    losses = [m["value"] for m in ok(http.get(f"/v1/training-jobs/{job['id']}/metrics", params={"name": "loss"}))["metrics"]]
    assert losses[-1] < losses[0]
    model = ok(http.get("/v1/models/wdbc/versions/1"))
    assert model["metrics"]["accuracy"] == job["metrics"]["accuracy"]
    assert {f["name"] for f in model["signature"]["inputs"]} >= {"mean_radius"}
    assert {"weights.safetensors"} <= {f["path"] for f in model["files"]}

    # Serve raw records, in both protocols.
    ok(http.post("/v1/endpoints", json={"name": "wdbc", "model": "wdbc@1"}), 201)
    record, truth = data.a_row(3)
    answered = ok(http.post("/v1/endpoints/wdbc/predict", json={"instances": [record, record]}))
    assert [p["prediction"] for p in answered["predictions"]] == [truth, truth]
    for wrong in ({"mean_radius": None}, {"mean_radius": "wide"}, {"mean_radios": 1.0}):
        refused = http.post("/v1/endpoints/wdbc/predict", json={"instances": [record, {**record, **wrong}]})
        assert refused.status_code == 422, refused.text
        assert refused.json()["errors"][0]["field"].startswith("instances[1]")
    ready(http, "/v1/endpoints/wdbc")
    metadata = ok(http.get("/v2/models/wdbc"))
    inputs = [
        {"name": tensor["name"], "shape": [1], "datatype": tensor["datatype"], "data": [record[tensor["name"]]]}
        for tensor in metadata["inputs"]
    ]
    inferred = ok(http.post("/v2/models/wdbc/infer", json={"id": "q1", "inputs": inputs}))
    assert inferred["id"] == "q1"
    assert next(o for o in inferred["outputs"] if o["name"] == "prediction")["data"] == [truth]
    for module, address in ((tritonclient.http, platform.url.removeprefix("http://")), (tritonclient.grpc, platform.grpc)):
        assert _by_triton(module, address, platform.key, inputs) == [truth.encode()]

    # Sell it to another workspace.
    price = {"per_row": {"currency": "USD", "micros": 2000}}
    listing = {"slug": "breast-check", "title": "Breast check", "card": CARD, "endpoint": "wdbc", "price": price}
    ok(http.post("/v1/listings", json=listing), 201)
    buyer = ok(http.post("/v1/workspaces", json={"name": "hospital"}), 201)
    with platform.http(buyer["secret"]) as other:
        assert other.post("/v1/listings/breast-check/invoke", json={"instances": [record]}).status_code == 403
        other.post("/v1/listings/breast-check/subscribe", json={}).raise_for_status()
        for _ in range(3):
            answered = ok(other.post("/v1/listings/breast-check/invoke", json={"instances": [record, record]}))
            assert [p["prediction"] for p in answered["predictions"]] == [truth, truth]
        ok(other.post("/v1/listings/breast-check/reviews", json={"stars": 5, "text": "Right each time."}), 201)
        assert ok(http.get("/v1/listings/breast-check"))["rating"] == 5

        # Money: 6 rows at 0.002 each, once.
        sold = eventually(lambda: sum(line["quantity"] for line in ok(http.get("/v1/earnings"))["lines"]) == 6)
        assert sold, http.get("/v1/earnings").text
        invoice = ok(other.post("/v1/invoices", json={}), 201)
        (line,) = [line for line in invoice["lines"] if "breast-check" in line["resource"]]
        assert (line["quantity"], line["amount"]["micros"]) == (6, 12000)
        assert invoice["total"]["micros"] >= 12000
        assert other.post("/v1/invoices", json={}).status_code == 409
    earned = ok(http.get("/v1/earnings"))
    (line,) = earned["lines"]
    assert line["gross"]["micros"] == 12000
    assert line["fee"]["micros"] + line["net"]["micros"] == 12000
    used = eventually(lambda: {line["metric"] for line in ok(http.get("/v1/usage"))["lines"]} >= {"cpu_seconds", "predictions"})
    assert used

    # One trace from the request to the registered model.
    trace = eventually(lambda: _whole_trace(http, job["trace_id"]))
    assert trace
    assert {s["trace_id"] for s in trace["spans"]} == {job["trace_id"]}
    assert len([s for s in trace["spans"] if not s["parent_id"]]) == 1


def _by_triton(module: Any, address: str, key: str, tensors: list[dict[str, Any]]) -> list[Any]:
    """What tritonclient, as it comes, hears of the tensors: they go and come as raw bytes."""
    inputs = [module.InferInput(each["name"], each["shape"], each["datatype"]) for each in tensors]
    for each, given in zip(inputs, tensors, strict=True):
        each.set_data_from_numpy(np.array(given["data"], triton_to_np_dtype(given["datatype"])))
    with module.InferenceServerClient(address) as client:
        headers = {"authorization": f"Bearer {key}"}
        assert client.is_model_ready("wdbc", headers=dict(headers))
        return list(client.infer("wdbc", inputs, headers=headers).as_numpy("prediction").reshape(-1))


def _whole_trace(http: httpx.Client, trace_id: str) -> dict[str, Any] | None:
    trace: dict[str, Any] = ok(http.get(f"/v1/traces/{trace_id}"))
    services = {s["service"] for s in trace["spans"]}
    return trace if {"gateway", "training", "compute", "data", "accounts"} <= services and len(trace["spans"]) > 20 else None


def test_the_same_key_answers_the_same(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": f"k-{time.time_ns()}"}
    first = http.post("/v1/datasets", json={"name": "once-only"}, headers=headers)
    again = http.post("/v1/datasets", json={"name": "once-only"}, headers=headers)
    other = http.post("/v1/datasets", json={"name": "something-else"}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert first.json() == again.json()
    assert other.json()["code"] == "idempotency_key_reused"


def test_lists_have_pages(http: httpx.Client) -> None:
    for n in range(5):
        http.post("/v1/datasets", json={"name": f"page-{n}"})
    seen, token = [], ""
    while True:
        page = ok(http.get("/v1/datasets", params={"page_size": 2, "page_token": token}))
        seen += [d["name"] for d in page["datasets"]]
        token = page["next_page_token"]
        if not token:
            break
    assert len(seen) == len(set(seen))
    assert {f"page-{n}" for n in range(5)} <= set(seen)


def test_documents(platform: Platform) -> None:
    with platform.http(key="") as anybody:
        document = ok(anybody.get("/openapi.json"))
        assert document["openapi"].startswith("3.1")
        assert {"/v1/training-jobs", "/v1/endpoints/{name}/predict", "/v2/models/{model_name}/infer"} & set(document["paths"])
        assert "<html" in anybody.get("/docs").text.lower()
        assert json.dumps(document).count("cdn") == 0
        for path in ("/healthz", "/readyz"):
            assert anybody.get(path).status_code == 200
