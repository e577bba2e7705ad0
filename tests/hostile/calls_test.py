"""The gateway's gRPC port as nobody should use it: what HTTP refuses is refused there too, and it goes on to answer."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from libs.inference import SERVICE
from tests.hostile.conftest import CANARY, Town, ok
from tests.platform import eventually

METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")


def question(name: str = "canary-endpoint", rows: int = 1) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=name)
    request.inputs.add(name="x", datatype="FP64", shape=[rows]).contents.fp64_contents.extend([0.5] * rows)
    request.inputs.add(name="canary_column", datatype="INT64", shape=[rows]).contents.int64_contents.extend([1] * rows)
    return bytes(request.SerializeToString())


@pytest.fixture
def channel(town: Town) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(town.platform.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def ask(channel: grpc.Channel, key: str, body: bytes, method: str = "ModelInfer") -> tuple[str, str]:
    """A status and words."""
    metadata = [("authorization", f"Bearer {key}")] if key else []
    try:
        channel.unary_unary(f"/{SERVICE}/{method}")(body, metadata=metadata, timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def test_without_a_key_that_works_nothing_is_said(town: Town, channel: grpc.Channel) -> None:
    for key in ("", "wrong-key", town.keys["revoked"], town.keys["victim"] + "x"):
        for method in METHODS:
            code, words = ask(channel, key, question(), method)
            assert (code, CANARY in words) == ("UNAUTHENTICATED", False), (method, words)


def test_another_workspace_s_endpoint_is_as_one_that_is_not_there(town: Town, channel: grpc.Channel) -> None:
    for method in METHODS[3:]:
        there = ask(channel, town.keys["rival"], question(), method)
        nowhere = ask(channel, town.keys["rival"], question("kanary-endpoint"), method)
        assert there[0] == nowhere[0] == "NOT_FOUND"
        assert there[1].replace("canary", "kanary") == nowhere[1]


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        (b"", ("INVALID_ARGUMENT",)),
        (b"\xff" * 1000, ("INVALID_ARGUMENT",)),
        (b"\x0a\x0fcanary-endpoint\x2a\x02\xff\xff", ("INVALID_ARGUMENT",)),
        (b"\x0a\x0fcanary-endpoint" + b"\x2b" * 100_000, ("INVALID_ARGUMENT",)),
        (b"\x0a\x0fcanary-endpoint" + b"\x2a\x00" * 100_000, ("INVALID_ARGUMENT",)),
        (b"\x0a\x05../..", ("NOT_FOUND", "INVALID_ARGUMENT")),
        (b"\x0a\x12canary-endpoint\x00\r\n", ("NOT_FOUND", "INVALID_ARGUMENT")),
        (question() + b"\x0a\x0fkanary-endpoint", ("NOT_FOUND",)),
        (question() + b" " * (34 << 20), ("RESOURCE_EXHAUSTED",)),
    ],
    ids=range(9),
)
def test_what_is_no_message(town: Town, channel: grpc.Channel, body: bytes, codes: tuple[str, ...]) -> None:
    code, words = ask(channel, town.keys["victim"], body)
    assert code in codes, words
    assert ask(channel, town.keys["victim"], question())[0] == "OK"


def test_callers_that_leave_are_counted_once_or_not_at_all(town: Town, channel: grpc.Channel) -> None:
    def recorded() -> int:
        with town.http("victim") as http:
            lines = ok(http.get("/v1/usage"))["lines"]
        return int(sum(line["quantity"] for line in lines if line["metric"] == "predictions"))

    settled = -1
    while settled != recorded():
        settled = recorded()
        time.sleep(1.5)
    metadata, send = [("authorization", f"Bearer {town.keys['victim']}")], channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for number in range(30):
        left = send.future(question(), metadata=metadata)
        time.sleep(0.002 * (number % 5))
        left.cancel()
    wrong: list[Any] = []

    def stay() -> None:
        for _ in range(10):
            code, words = ask(channel, town.keys["victim"], question(rows=2))
            if code != "OK":
                wrong.append(words)

    threads = [threading.Thread(target=stay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert eventually(lambda: recorded() >= settled + 80)
    time.sleep(1.5)
    assert settled + 80 <= recorded() <= settled + 80 + 30
