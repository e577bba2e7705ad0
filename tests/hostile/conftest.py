"""One platform with a victim on it, who has one of everything, and a rival in a workspace of their own who wants it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.platform import Platform, eventually, running

# In every name of the victim's, and in nothing that a rival may ever be answered.
CANARY = "canary"
ROWS = "x,y,canary_column\n" + "".join(f"{n / 50},{n / 25 + 1},{n % 7}\n" for n in range(200))
CARD = "---\nlicense: apache-2.0\n---\n# A line\nSays y of x.\n"
RECORD = {"x": 0.5, "canary_column": 1}


@dataclass
class Town:
    """Keys by whom they speak for, and what the victim has."""

    platform: Platform
    keys: dict[str, str] = field(default_factory=dict)
    job: str = ""
    key_id: str = ""
    invoice: str = ""
    trace: str = ""
    allocation: str = ""

    def http(self, who: str) -> httpx.Client:
        return self.platform.http(self.keys[who])


def ok(answer: httpx.Response, *statuses: int) -> Any:
    assert answer.status_code in (statuses or (200, 201, 202)), f"{answer.request.method} {answer.request.url}: {answer.text[:2000]}"
    return answer.json()


def train(http: httpx.Client, name: str, dataset: str, **options: Any) -> dict[str, Any]:
    """A finished job of a model of a straight line."""
    body = {
        "name": name,
        "dataset": dataset,
        "task": "regression",
        "target": "y",
        "output_model": name,
        "model": {"architecture": "linear"},
        "training": {"epochs": 2},
    }
    job = ok(http.post("/v1/training-jobs", json={**body, **options}))

    def ended() -> Any:
        found = ok(http.get(f"/v1/training-jobs/{job['id']}"))
        return found if found["state"] in ("succeeded", "failed", "cancelled") else None

    done = eventually(ended, 120)
    assert done and done["state"] == "succeeded", done
    return dict(done)


def serve(http: httpx.Client, name: str, model: str) -> None:
    ok(http.post("/v1/endpoints", json={"name": name, "model": model}))
    assert eventually(lambda: ok(http.get(f"/v1/endpoints/{name}"))["state"] == "ready", 60)


def _populate(town: Town) -> None:
    with town.platform.http() as operator:
        for name in ("victim", "rival", "buyer"):
            made = ok(operator.post("/v1/workspaces", json={"name": name}))["secret"]
            # Three people, not three workspaces of one.
            with town.platform.http(made) as http:
                ok(http.put(f"/v1/members/{name}@example.com", json={"role": "owner"}))
                key = {"name": name, "member": f"{name}@example.com", "role": "owner"}
                town.keys[name] = ok(http.post("/v1/api-keys", json=key))["secret"]
        for name in ("victim", "buyer"):
            ok(operator.patch(f"/v1/workspaces/{name}", json={"plan": "pro"}))
    with town.http("victim") as http:
        for role in ("viewer", "editor"):
            made = ok(http.post("/v1/api-keys", json={"name": f"canary-{role}", "role": role}))
            town.keys[role] = made["secret"]
            town.key_id = made["api_key"]["id"]
        gone = ok(http.post("/v1/api-keys", json={"name": "canary-gone"}))
        town.keys["revoked"] = gone["secret"]
        http.delete(f"/v1/api-keys/{gone['api_key']['id']}").raise_for_status()
        ok(http.put("/v1/members/canary@example.com", json={"role": "viewer"}))
        ok(http.put("/v1/datasets/canary-data/content", params={"filename": "canary.csv"}, content=ROWS))
        job = train(http, "canary-model", "canary-data@1")
        town.job, town.trace = job["id"], job["trace_id"]
        serve(http, "canary-endpoint", "canary-model@1")
        price = {"per_row": {"currency": "USD", "micros": 2000}}
        listing = {"slug": "line-for-sale", "title": "A line", "card": CARD, "endpoint": "canary-endpoint", "price": price}
        ok(http.post("/v1/listings", json=listing))
        town.allocation = ok(http.get("/v1/compute/allocations"))["allocations"][0]["id"]
        assert eventually(lambda: ok(http.get("/v1/usage"))["lines"])
        town.invoice = ok(http.post("/v1/invoices", json={}))["number"]


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with running(tmp_path_factory.mktemp("town")) as platform:
        town = Town(platform)
        _populate(town)
        yield town
        platform.down()
