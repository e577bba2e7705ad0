"""What counts as an answer, and that a load over gRPC counts what is none."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from libs.inference import RESPONSES, SERVICE
from tools.bench_serving.load import BINARY_ROW, JSON_ROW, RECORD, RPC_ROW, requests

RIGHT = [0.25, 0.75]


def message(values: list[float] = RIGHT) -> bytes:
    raw = [np.array(values, "<f4").tobytes()]
    outputs = [{"name": "y", "datatype": "FP32", "shape": [1, len(values)]}]
    return bytes(RESPONSES["ModelInfer"](model_name="m", outputs=outputs, raw_output_contents=raw).SerializeToString())


def binary() -> bytes:
    """A text's bytes first, as our replica has it."""
    label = {"name": "prediction", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    numbers = {"name": "y", "datatype": "FP64", "shape": [1, 2], "parameters": {"binary_data_size": 16}}
    return json.dumps({"outputs": [label, numbers]}).encode() + b"\2\0\0\0c\xff" + np.array(RIGHT, "<f8").tobytes()


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (JSON_ROW, json.dumps({"outputs": [{"datatype": "BYTES", "data": ["c0"]}, {"datatype": "FP64", "data": RIGHT}]}).encode()),
        (JSON_ROW, json.dumps([{"datatype": "FP32", "data": RIGHT, "parameters": None}]).encode()),
        (BINARY_ROW, binary()),
        (RECORD, json.dumps({"predictions": [{"prediction": "b", "probabilities": {"a": 0.25, "b": 0.75}}]}).encode()),
        (RPC_ROW, message()),
    ],
)
def test_an_answer_of_each_kind_has_its_probabilities(kind: str, answer: bytes) -> None:
    assert requests()[kind].numbers(answer).tolist() == RIGHT


@pytest.mark.parametrize(
    "answer", [b"", b"Internal error", b"{}", b'{"outputs": [{"datatype": "BYTES", "data": ["c0"]}]}', b'{"outputs": 1}']
)
def test_what_has_none_is_no_answer(answer: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        requests()[JSON_ROW].numbers(answer)


def load(answer: Callable[[bytes, Any], bytes]) -> tuple[int, int]:
    """Calls and failures of a load on a server that answers so."""
    request = requests()[RPC_ROW]
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        command = [sys.executable, "-m", "tools.bench_serving.rpc_load", str(port), request.path, "0.3", str(len(message())), "key", "word"]
        said = subprocess.run(command, input=request.body, check=True, capture_output=True, timeout=60).stdout.split()
    finally:
        server.stop(0)
    return int(said[0]), int(said[-1])


def test_calls_carry_message_and_metadata_and_right_answers_are_no_failures() -> None:
    seen = set()

    def answer(body: bytes, context: Any) -> bytes:
        seen.add((body, dict(context.invocation_metadata())["key"]))
        return message()

    calls, failures = load(answer)
    assert (calls > 32, failures) == (True, 0)
    assert seen == {(requests()[RPC_ROW].body, "word")}


def test_short_answers_and_refusals_are_failures() -> None:
    calls, failures = load(lambda body, context: message([1.0]))
    assert calls == failures > 0
    calls, failures = load(lambda body, context: context.abort(grpc.StatusCode.INTERNAL, "no"))
    assert calls == failures > 0
