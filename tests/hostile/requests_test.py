"""HTTP as nobody should send it: names, headers, framing, slowness. Never a 5xx, never somebody else's answer."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import CANARY, RECORD, Town, ok
from tests.platform import eventually

NAMES = [
    "..",
    "../x",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f",
    "%2e%2e",
    "%00",
    "canary-data%00",
    "canary-data%0d%0aset-cookie:%20x",
    "canary-data%2f..%2fcanary-data",
    "canary-data/",
    "canary-data;x",
    "CANARY-DATA",
    "c%D0%B0nary-data",  # a Cyrillic а
    "canary%E2%80%90data",  # a hyphen that is none
    "canary-data%E2%80%8b",
    "%ff%fe",
    "%ed%a0%80",
    "canary-data@1",
    "%27%20OR%201=1--",
    "%",
    "%zz",
    "x" * 10_000,
    "%F0%9F%92%A3" * 500,
]
PLACES = [
    "/v1/datasets/{}",
    "/v1/datasets/{}/versions/1",
    "/v1/datasets/canary-data/versions/{}",
    "/v1/models/{}",
    "/v1/models/canary-model/versions/1/files/{}",
    "/v1/endpoints/{}",
    "/v1/endpoints/{}/replicas",
    "/v1/listings/{}",
    "/v1/training-jobs/{}",
    "/v1/training-jobs/{}/events",
    "/v1/invoices/{}",
    "/v1/workspaces/{}",
    "/v1/traces/{}",
    "/v1/compute/nodes/{}",
    "/v1/compute/allocations/{}",
    "/v2/models/{}",
    "/v2/models/canary-endpoint/versions/{}",
]


@pytest.fixture(scope="module")
def http(town: Town) -> Iterator[httpx.Client]:
    with town.http("victim") as http:
        yield http


def raw(town: Town, *parts: bytes, pause: float = 0.0, timeout: float = 8) -> bytes:
    """All that comes back on one connection."""
    with socket.create_connection(("127.0.0.1", town.platform.port), timeout=timeout) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        heard = b""
        try:
            while part := connection.recv(65536):
                heard += part
        except OSError:
            pass
        return heard


def statuses(answer: bytes) -> list[int]:
    return [int(line[9:12]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def head(town: Town, line: str, *headers: str, who: str = "victim") -> bytes:
    lines = [f"{line} HTTP/1.1", "host: x", f"authorization: Bearer {town.keys[who]}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.mark.parametrize("place", PLACES)
def test_names(town: Town, place: str) -> None:
    for name in NAMES:
        (first, *_) = statuses(raw(town, head(town, f"GET {place.format(name)}", "connection: close"))) or [0]
        fine = name in ("canary-data/",) or (name == ".." and place.endswith("{}"))
        assert 400 <= first < 500 or fine, f"{place} {name[:60]}: {first}"


def test_names_in_bodies(http: httpx.Client) -> None:
    names: list[Any] = ["", ".", "..", "../x", "a/b", "a\0b", "\u0430-cyrillic", "x" * 10_000, "\u202e", "A", " a", "a ", "a\n", "-a"]
    names += [1, None, [], {}, True]
    for path, field, rest in (
        ("/v1/datasets", "name", {}),
        ("/v1/endpoints", "name", {"model": "canary-model@1"}),
        ("/v1/workspaces", "name", {}),
        ("/v1/listings", "slug", {"title": "x", "card": "# x", "endpoint": "canary-endpoint", "price": {}}),
    ):
        for name in names:
            answer = http.post(path, json={**rest, field: name})
            assert answer.status_code in (400, 422), f"{path} {name!r:.60}: {answer.status_code} {answer.text[:300]}"
    for member in ("x", "@", "a@b@c", "../x@example.com", "x" * 400 + "@example.com", "a b@example.com", "a\0@example.com"):
        assert 400 <= http.post("/v1/api-keys", json={"name": "x", "member": member}).status_code < 500, member


def test_headers(town: Town) -> None:
    line = "GET /v1/me"
    assert statuses(raw(town, head(town, line, *[f"x-{n}: y" for n in range(5000)])))[:1] in ([431], [])
    assert statuses(raw(town, head(town, line, "x: " + "y" * 100_000)))[:1] in ([431], [])
    assert statuses(raw(town, head(town, "GET /v1/me?" + "x" * 100_000)))[:1] in ([431], [414], [])
    assert statuses(raw(town, b"GET /v1/me HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 2_000_000))[:1] in ([431], [])
    for odd in ("x\0: y", ": y", "x : y", " x: y", "x: \x01", "x: y\r\n z: folded"):
        assert all(status < 500 for status in statuses(raw(town, head(town, line, odd, "connection: close")))), odd
    assert statuses(raw(town, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200))[:1] in ([400], [])
    assert statuses(raw(town, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))[:1] in ([400], [404], [401], [])


def test_no_header_of_an_answer_is_the_caller_s(town: Town) -> None:
    answer = raw(town, head(town, "GET /v1/datasets/x%0d%0aset-cookie:%20a=b", "traceparent: 00-x", "connection: close"))
    top = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in top
    put = head(town, "PUT /v1/datasets/head/content?filename=a%0d%0ab.csv", "content-length: 8", "connection: close")
    answer = raw(town, put, b"a,b\n1,2\n")
    assert b"\r\nb.csv" not in answer.partition(b"\r\n\r\n")[0]


def test_two_readings_of_one_message_are_refused(town: Town) -> None:
    """Content-Length and Transfer-Encoding at once, twice, or oddly written: no second request may be smuggled in."""
    smuggled = head(town, "GET /v1/datasets/canary-data", who="victim")
    for framing in (
        ["content-length: 4", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 4"],
        ["content-length: 4", "content-length: 5"],
        ["content-length: 4, 5"],
        ["content-length: +4"],
        ["content-length: -1"],
        ["content-length: 0x4"],
        ["transfer-encoding: xchunked"],
        ["transfer-encoding: chunked, identity"],
        ["transfer-encoding: identity"],
        ["transfer-encoding : chunked"],
        ["transfer-encoding:\x0bchunked"],
    ):
        outer = head(town, "POST /v1/datasets", "content-type: application/json", *framing, who="rival")
        answer = raw(town, outer, b"0\r\n\r\n" + smuggled)
        assert CANARY.encode() not in answer.replace(b"/v1/datasets/canary-data", b""), framing
        assert all(status < 500 for status in statuses(answer)), (framing, answer)
        assert len(statuses(answer)) <= 1 or statuses(answer)[0] in (200, 201, 400, 422), (framing, answer)


def test_methods(town: Town) -> None:
    for method in ("TRACE", "CONNECT", "OPTIONS", "PROPFIND", "PURGE", "FOO", "get", "POST"):
        for target in ("/v1/me", "/v1/datasets/canary-data", "/healthz", "*", "example.com:443", "http://example.com/v1/me"):
            answer = raw(town, head(town, f"{method} {target}", "connection: close", "x-secret: reflected"))
            assert all(400 <= status < 500 for status in statuses(answer)), f"{method} {target}: {answer[:200]!r}"
            assert b"reflected" not in answer


def test_a_slow_client_is_given_up(town: Town, http: httpx.Client) -> None:
    """A hundred of them take nothing from anybody."""
    slow = [socket.create_connection(("127.0.0.1", town.platform.port)) for _ in range(100)]
    for number, connection in enumerate(slow):
        text = head(town, "POST /v1/endpoints/canary-endpoint/predict", "content-length: 1000", "content-type: application/json")
        connection.sendall(text[:-2] + b"x" if number % 2 else text + b"{")
    began = time.monotonic()
    for _ in range(10):
        assert http.post("/v1/endpoints/canary-endpoint/predict", json={"instances": [RECORD]}).status_code == 200
    assert time.monotonic() - began < 5
    gone = set()

    def closed() -> bool:
        for connection in slow[1::2]:
            try:
                connection.settimeout(0.01)
                if not connection.recv(4096):
                    gone.add(connection)
                else:
                    connection.sendall(b"x")
            except TimeoutError:
                continue
            except OSError:
                gone.add(connection)
        return len(gone) == 50

    assert eventually(closed, 20, 0.5), f"{50 - len(gone)} heads of a request are still awaited"
    for connection in slow:
        connection.close()


BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("no JSON", b"{"),
    ("no object", b"[]"),
    ("no list", b'{"instances": {}}'),
    ("deep", b'{"instances": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}"),
    ("deep objects", b'{"instances": [' + b'{"x":' * 50_000 + b"1" + b"}" * 50_000 + b"]}"),
    ("NaN", b'{"instances": [{"x": NaN, "canary_column": 1}]}'),
    ("Infinity", b'{"instances": [{"x": -Infinity, "canary_column": 1}]}'),
    ("huge number", b'{"instances": [{"x": 1e999, "canary_column": 1}]}'),
    ("huge integer", b'{"instances": [{"x": 1, "canary_column": 1' + b"0" * 5000 + b"}]}"),
    ("a text", b'{"instances": [{"x": "wide", "canary_column": 1}]}'),
    ("a list", b'{"instances": [{"x": [1], "canary_column": 1}]}'),
    ("surplus", b'{"instances": [{"x": 1, "canary_column": 1, "y": 2}]}'),
    ("missing", b'{"instances": [{"x": 1}]}'),
    ("null", b'{"instances": [null]}'),
    ("a surrogate", b'{"instances": [{"\\ud800": 1}]}'),
    ("no UTF-8", b'{"instances": [{"\xff": 1}]}'),
    ("10,001", b'{"instances": [' + b",".join([b'{"x":1,"canary_column":1}'] * 10_001) + b"]}"),
]


@pytest.mark.parametrize(("what", "body"), BODIES, ids=[what for what, _ in BODIES])
def test_bodies_of_predictions(http: httpx.Client, what: str, body: bytes) -> None:
    for path, statuses in (("/v1/endpoints/canary-endpoint/predict", (400, 413, 422)), ("/v2/models/canary-endpoint/infer", (400, 413))):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in statuses, f"{path}: {answer.status_code} {answer.text[:500]}"
        assert len(answer.content) < 32_768


def test_names_twice_in_a_record(http: httpx.Client) -> None:
    body = b'{"instances": [{"x": 0.1, "x": 0.9, "canary_column": 1}]}'
    answer = http.post("/v1/endpoints/canary-endpoint/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text


def test_a_body_of_more_than_32_mib(http: httpx.Client) -> None:
    answer = http.post("/v1/endpoints/canary-endpoint/predict", content=b" " * (33 << 20))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [-1], "data": []},
        {"shape": [2**62], "data": [1]},
        {"shape": [1] * 1000, "data": [1]},
        {"shape": [1.5], "data": [1]},
        {"shape": "1", "data": [1]},
        {"shape": [1], "data": [[[[1]]]] * 3},
        {"shape": [1], "data": "x"},
        {"shape": [1], "data": [None]},
        {"shape": [1], "data": [1], "datatype": "BYTES"},
        {"shape": [1], "data": [1], "datatype": "FP128"},
        {"shape": [0], "data": []},
        {"shape": [0, 2**70], "data": []},
        {"shape": [0] * 1000, "data": []},
        {"shape": [1], "parameters": {"binary_data_size": 2**60}},
        {"shape": [1], "parameters": {"binary_data_size": -1}},
        {"shape": [1]},
    ],
    ids=lambda tensor: str(tensor)[:40],
)
def test_tensors(http: httpx.Client, tensor: dict[str, Any]) -> None:
    whole = {"name": "x", "datatype": "FP64", **tensor}
    other = {"name": "canary_column", "datatype": "INT64", "shape": [1], "data": [1]}
    for headers in ({}, {"inference-header-content-length": "9999999"}, {"inference-header-content-length": "-1"}):
        answer = http.post("/v2/models/canary-endpoint/infer", json={"inputs": [whole, other]}, headers=headers)
        assert answer.status_code == 400 or (tensor["shape"] == [0] and answer.status_code == 200), answer.text
        assert "error" in answer.json() or answer.status_code == 200


def test_clients_that_leave_are_counted_once_or_not_at_all(town: Town, http: httpx.Client) -> None:
    """And the connections to the replica go on to answer the right one."""

    def recorded() -> int:
        lines = ok(http.get("/v1/usage"))["lines"]
        return int(sum(line["quantity"] for line in lines if line["metric"] == "predictions"))

    settled = -1
    while settled != recorded():
        settled = recorded()
        time.sleep(1.5)
    body = b'{"instances": [{"x": 0.5, "canary_column": 1}]}'
    line, length = "POST /v1/endpoints/canary-endpoint/predict", f"content-length: {len(body)}"
    request = head(town, line, length, "content-type: application/json") + body
    for number in range(30):
        with socket.create_connection(("127.0.0.1", town.platform.port)) as connection:
            connection.sendall(request if number % 3 else request[:-10])
            time.sleep(0.002 * (number % 5))
    wrong: list[Any] = []

    def ask(value: float) -> None:
        with town.http("victim") as one:
            for _ in range(10):
                answer = ok(one.post("/v1/endpoints/canary-endpoint/predict", json={"instances": [{"x": value, "canary_column": 1}] * 2}))
                first, second = answer["predictions"]
                if first != second:
                    wrong.append(answer)
                answers.setdefault(value, set()).add(str(first))

    answers: dict[float, set[str]] = {}
    threads = [threading.Thread(target=ask, args=(n / 3,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(answers) == 5 and all(len(each) == 1 for each in answers.values()), answers
    assert len(set(map(str, answers.values()))) == 5, "one got the other's answer"
    assert eventually(lambda: recorded() - settled >= 100, 20)
    time.sleep(2)
    assert 100 <= recorded() - settled <= 120, recorded() - settled
