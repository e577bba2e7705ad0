"""Quotas and money under attack: races, odd prices, keys used twice. Nothing is free, and nothing is paid twice."""

import io
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import CARD, RECORD, Town, ok, train
from tests.platform import eventually

PREDICT = "/v1/endpoints/canary-endpoint/predict"
INVOKE = "/v1/listings/line-for-sale/invoke"


def at_once(town: Town, who: str, *calls: Callable[[httpx.Client], httpx.Response]) -> list[httpx.Response]:
    """All of them begin together."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
        with town.http(who) as http:
            http.get("/v1/plans")
            barrier.wait()
            return call(http)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def predict(http: httpx.Client, rows: int = 1, path: str = PREDICT) -> httpx.Response:
    return http.post(path, json={"instances": [RECORD] * rows})


def quota(http: httpx.Client, metric: str) -> dict[str, Any]:
    return dict(next(each for each in ok(http.get("/v1/me"))["quotas"] if each["metric"] == metric))


@pytest.fixture
def plan(town: Town) -> Iterator[Callable[..., None]]:
    """Gives a workspace a plan with such limits."""
    with town.platform.http() as operator:

        def give(workspace: str, **tight: int) -> None:
            pro = next(each for each in ok(operator.get("/v1/plans"))["plans"] if each["name"] == "pro")
            limits = {each["metric"]: each["limit"] for each in pro["quotas"]} | tight
            body = {
                "display_name": "Tight",
                "monthly_price": {"currency": "USD", "micros": 0},
                "quotas": [{"metric": metric, "limit": limit} for metric, limit in limits.items()],
                "prices": pro["prices"],
            }
            ok(operator.put("/v1/plans/tight", json=body))
            ok(operator.patch(f"/v1/workspaces/{workspace}", json={"plan": "tight"}))

        yield give
        for workspace in ("victim", "buyer"):
            ok(operator.patch(f"/v1/workspaces/{workspace}", json={"plan": "pro"}))


def settled(http: httpx.Client, metric: str = "predictions") -> int:
    """What has been used, once the gateway's blocks, which bridge the last ten seconds, are given back."""
    readings: list[int] = []

    def still() -> bool:
        readings.append(int(quota(http, metric)["used"]))
        return len(readings) > 13 and len(set(readings[-13:])) == 1

    assert eventually(still, 60, 1), readings
    return readings[-1]


@pytest.mark.slow
def test_fifty_predictions_against_a_nearly_used_up_quota(town: Town, plan: Callable[..., None]) -> None:
    with town.http("victim") as http:
        used = settled(http)
        plan("victim", predictions=used + 30)
        answers = at_once(town, "victim", *[lambda one: predict(one, 2)] * 50)
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert all(answer.status_code == 403 and answer.json()["code"] == "quota_exceeded" for answer in refused), refused[0].text
        assert len(good) == 15, f"{len(good)} of 15 predictions of two rows"
        assert predict(http).status_code == 403
        assert settled(http) == used + 30
        # More than is left, in one request.
        plan("victim", predictions=used + 35)
        assert predict(http, 6).status_code == 403
        assert predict(http, 5).status_code == 200
        assert predict(http).status_code == 403


@pytest.mark.slow
def test_the_buyer_s_quota_holds_for_listings(town: Town, plan: Callable[..., None]) -> None:
    with town.http("buyer") as http:
        ok(http.post("/v1/listings/line-for-sale/subscribe", json={}))
        used = settled(http)
        plan("buyer", predictions=used + 10)
        answers = at_once(town, "buyer", *[lambda one: predict(one, 2, INVOKE)] * 12)
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [403] * 7
        # And is used up, not only held for a moment.
        assert settled(http) == used + 10
        assert predict(http, 1, INVOKE).status_code == 403


def test_a_month_of_races(town: Town) -> None:
    """Subscribing, calling, invoicing and unsubscribing at once: each row is on one invoice, at the price agreed to."""
    with town.http("buyer") as http, town.http("victim") as victim:
        http.post("/v1/listings/line-for-sale/subscribe", json={})
        http.post("/v1/invoices", json={})
        before = _earned(victim)
        first = {each["number"] for each in _invoices(http)}
        calls: list[Callable[[httpx.Client], httpx.Response]] = []
        for _ in range(6):
            calls += [
                lambda one: predict(one, 3, INVOKE),
                lambda one: one.post("/v1/invoices", json={}),
                lambda one: one.post("/v1/listings/line-for-sale/subscribe", json={}),
                lambda one: one.delete("/v1/listings/line-for-sale/subscribe"),
                lambda one: predict(one, 3, INVOKE),
            ]
        answers = at_once(town, "buyer", *calls)
        assert all(answer.status_code < 500 for answer in answers), [a.text for a in answers if a.status_code >= 500]
        rows = 3 * sum(answer.status_code == 200 for answer in answers if answer.request.url.path == INVOKE)
        assert eventually(lambda: _earned(victim)[0] - before[0] == rows, 20), (_earned(victim), before, rows)
        assert _earned(victim)[1] - before[1] == rows * 2000
        http.post("/v1/invoices", json={})
        invoices = [each for each in _invoices(http) if each["number"] not in first]
        lines = [line for each in invoices for line in each["lines"] if line["metric"] == "listing_rows"]
        assert sum(line["quantity"] for line in lines) == rows
        assert sum(line["amount"]["micros"] for line in lines) == rows * 2000
        for each in invoices:
            assert each["total"]["micros"] == sum(line["amount"]["micros"] for line in each["lines"])
        assert len({each["number"] for each in invoices}) == len(invoices)
        listing = ok(http.get("/v1/listings/line-for-sale"))
        active = [each for each in ok(http.get("/v1/subscriptions"))["subscriptions"] if each["state"] == "active"]
        assert listing["subscribers"] == len(active) <= 1


def _earned(http: httpx.Client) -> tuple[int, int]:
    lines = ok(http.get("/v1/earnings"))["lines"]
    return int(sum(line["quantity"] for line in lines)), sum(line["gross"]["micros"] for line in lines)


def _invoices(http: httpx.Client) -> list[dict[str, Any]]:
    found = ok(http.get("/v1/invoices", params={"page_size": 1000}))["invoices"]
    # The running month's draft has no number.
    return [ok(http.get(f"/v1/invoices/{each['number']}")) for each in found if each["number"]]


def test_the_price_that_was_agreed_to_holds(town: Town) -> None:
    with town.http("buyer") as http, town.http("victim") as victim:
        http.post("/v1/listings/line-for-sale/subscribe", json={})
        before = _earned(victim)
        ok(victim.patch("/v1/listings/line-for-sale", json={"price": {"per_row": {"currency": "USD", "micros": 999_000_000}}}))
        ok(predict(http, 2, INVOKE))
        assert eventually(lambda: _earned(victim)[0] - before[0] == 2, 20)
        assert _earned(victim)[1] - before[1] == 4000
        ok(victim.patch("/v1/listings/line-for-sale", json={"price": {"per_row": {"currency": "USD", "micros": 2000}}}))


@pytest.mark.parametrize("micros", [-1, 2**63 - 1, 2**64, 10**15, 0.5, "1e3", "-1", None, True, [], 1e400 and "NaN"])
def test_prices(town: Town, micros: Any) -> None:
    with town.http("victim") as http:
        price = {"per_row": {"currency": "USD", "micros": micros}}
        listing = {"slug": "odd-price", "title": "x", "card": CARD, "endpoint": "canary-endpoint", "price": price}
        answer = http.post("/v1/listings", json=listing)
        assert answer.status_code in (400, 422) or (micros is None and answer.status_code == 201), answer.text
        changed = http.patch("/v1/listings/line-for-sale", json={"price": price})
        assert changed.status_code in (400, 422) or micros is None, changed.text
        if micros is None:
            http.patch("/v1/listings/line-for-sale", json={"price": {"per_row": {"currency": "USD", "micros": 2000}}})
        for currency in ("EUR", "usd", "", "USDX", 1):
            other = {"per_row": {"currency": currency, "micros": 1}}
            answer = http.post("/v1/listings", json={**listing, "slug": f"odd-{currency}".lower().rstrip("-"), "price": other})
            assert answer.status_code in (400, 422), answer.text


def test_one_s_own_listing_earns_nothing_new(town: Town) -> None:
    """Who subscribes to their own pays themselves, less the fee; no money comes from nowhere."""
    with town.http("victim") as http:
        answer = http.post("/v1/listings/line-for-sale/subscribe", json={})
        if answer.status_code >= 400:
            return
        ok(predict(http, 2, INVOKE))
        lines = lambda: [line for line in ok(http.get("/v1/earnings"))["lines"] if line["buyer"] == "victim"]  # noqa: E731
        assert eventually(lines, 20)
        (line,) = lines()
        assert line["net"]["micros"] <= line["gross"]["micros"]
        http.delete("/v1/listings/line-for-sale/subscribe")
        assert http.post("/v1/listings/line-for-sale/reviews", json={"stars": 5, "text": "Great."}).status_code == 403


def test_reviews_are_the_callers(town: Town) -> None:
    with town.http("rival") as http:
        assert http.post("/v1/listings/line-for-sale/reviews", json={"stars": 1, "text": "Bad."}).status_code == 409
        for stars in (0, 6, -1, 2.5, "5e0x", None):
            assert http.post("/v1/listings/line-for-sale/reviews", json={"stars": stars, "text": "x"}).status_code in (400, 409, 422)


def test_an_idempotency_key_is_of_a_workspace_and_a_route(town: Town) -> None:
    headers = {"Idempotency-Key": "the-same-for-all"}
    with town.http("victim") as victim, town.http("rival") as rival:
        made = ok(victim.post("/v1/api-keys", json={"name": "canary-once"}, headers=headers), 201)
        answer = rival.post("/v1/api-keys", json={"name": "canary-once"}, headers=headers)
        assert answer.status_code in (201, 403), answer.text
        assert made["secret"] not in answer.text and made["api_key"]["id"] not in answer.text
        # Another route, another thing.
        assert victim.post("/v1/datasets", json={"name": "key-on-another-route"}, headers=headers).status_code in (201, 422)
        with town.http("viewer") as viewer:
            # What an owner may do is not repeated to one who may not.
            again = viewer.post("/v1/api-keys", json={"name": "canary-once"}, headers=headers)
            assert again.status_code == 403 and made["secret"] not in again.text, again.text
        again = victim.post("/v1/api-keys", json={"name": "canary-once"}, headers=headers)
        assert again.status_code in (201, 409), again.text
        assert again.status_code == 409 or again.json()["api_key"]["id"] == made["api_key"]["id"]
        victim.delete(f"/v1/api-keys/{made['api_key']['id']}").raise_for_status()
    answers = at_once(
        town, "victim", *[lambda one: one.post("/v1/datasets", json={"name": "one-of-ten"}, headers={"Idempotency-Key": "ten"})] * 10
    )
    assert {answer.status_code for answer in answers} <= {201, 409}, [a.text for a in answers]
    assert len({answer.text for answer in answers if answer.status_code == 201}) == 1


def test_ten_keys_at_once_stay_within_the_plan(town: Town) -> None:
    with town.http("rival") as http:
        limit = quota(http, "api_keys")["limit"]
        answers = at_once(town, "rival", *[lambda one: one.post("/v1/api-keys", json={"name": "many"})] * (limit + 5))
        assert all(answer.status_code in (201, 403) for answer in answers)
        assert quota(http, "api_keys")["used"] == limit
        for each in answers:
            if each.status_code == 201:
                http.delete(f"/v1/api-keys/{each.json()['api_key']['id']}").raise_for_status()


def packed(size: int) -> bytes:
    """A model of about so many bytes, which no packing makes smaller."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("model.py", "class Model:\n    def predict(self, records):\n        return records\n")
        archive.writestr("weights", os.urandom(size))
    return data.getvalue()


def test_models_of_two_at_once_do_not_pass_the_storage_together(town: Town, plan: Callable[..., None]) -> None:
    with town.http("buyer") as http:
        ok(http.put("/v1/datasets/room/content", params={"filename": "room.csv"}, content="x,y\n" + "1,2\n3,4\n" * 20))
        before, limit = quota(http, "storage_bytes")["used"], 1 << 20
        plan("buyer", storage_bytes=before + limit)

        def push(name: str, content: bytes) -> Callable[[httpx.Client], httpx.Response]:
            return lambda http: http.put(f"/v1/models/{name}/content", content=content)

        answers = at_once(town, "buyer", *(push(f"race-{n}", packed(600 << 10)) for n in range(4)))
        assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403], [answer.text for answer in answers]
        refused = next(answer.json() for answer in answers if answer.status_code == 403)
        assert (refused["code"], refused["metric"]) == ("quota_exceeded", "storage_bytes")
        assert "delete a dataset or a model" in refused["detail"]
        [model] = ok(http.get("/v1/models"))["models"]
        files = ok(http.get(f"/v1/models/{model['name']}/versions/1"))["files"]
        stored = before + sum(file["size_bytes"] for file in files)
        assert eventually(lambda: quota(http, "storage_bytes")["used"] == stored, 10), (quota(http, "storage_bytes"), stored)

        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model.py", "class Model: ...")
            archive.writestr("zeros", bytes(64 << 20))
        answer = push("bomb", bomb.getvalue())(http)
        assert (answer.status_code, answer.json()["code"]) == (403, "quota_exceeded")

        host, port = town.platform.url.removeprefix("http://").split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as half:
                head = f"PUT /v1/models/half/content HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {town.keys['buyer']}\r\n"
                half.sendall(f"{head}content-length: 300000\r\n\r\n".encode() + bytes(100_000))
        assert quota(http, "storage_bytes")["used"] == stored

        plan("buyer", storage_bytes=stored)
        job = {"dataset": "room", "task": "regression", "target": "y", "output_model": "late", "model": {"architecture": "linear"}}
        answer = http.post("/v1/training-jobs", json=job)
        assert (answer.status_code, answer.json()["code"]) == (403, "quota_exceeded"), answer.text
        http.delete(f"/v1/models/{model['name']}").raise_for_status()
        assert eventually(lambda: quota(http, "storage_bytes")["used"] == before, 10)


def test_a_finished_training_goes_over_and_what_comes_next_is_refused(town: Town, plan: Callable[..., None]) -> None:
    with town.http("buyer") as http:
        ok(http.put("/v1/datasets/few/content", params={"filename": "few.csv"}, content="x,y\n" + "1,2\n3,4\n" * 20))
        before = quota(http, "storage_bytes")["used"]
        plan("buyer", storage_bytes=before + 10)
        train(http, "over", "few@1")
        files = ok(http.get("/v1/models/over/versions/1"))["files"]
        stored = before + sum(file["size_bytes"] for file in files)
        assert eventually(lambda: quota(http, "storage_bytes")["used"] == stored, 10), (quota(http, "storage_bytes"), stored)
        assert stored > before + 10
        answer = http.put("/v1/datasets/few/content", params={"filename": "few.csv"}, content="x,y\n1,2\n")
        assert (answer.status_code, answer.json()["remaining"]) == (403, 0)
        http.delete("/v1/models/over").raise_for_status()
        assert eventually(lambda: quota(http, "storage_bytes")["used"] == before, 10)
