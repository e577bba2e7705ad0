"""Requests, their answers, and loads of them: over HTTP by wrk, over gRPC by `rpc_load`."""

import json
import random
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from libs.inference import REQUESTS, RESPONSES, SERVICE
from libs.modelkit.raw import Raw
from libs.modelkit.runtime import load
from tools.bench_serving.packages import COLUMNS
from tools.proto import ROOT

TOKEN = "bench"
INFER = "/v2/models/m/infer"
# Kinds of requests, as they are called in the table.
JSON_ROW, JSON_COLUMNS, RECORD = "V2 JSON, a row in one tensor", "V2 JSON, a tensor a column", "/predict, a record"
BINARY_ROW, RPC_ROW = "V2 binary, a row in one tensor", "V2 gRPC, a row in one tensor"
JSON_PICTURE, BINARY_PICTURE, RPC_PICTURE = "V2 JSON, a picture", "V2 binary, a picture", "V2 gRPC, a picture"
_CALL = f"/{SERVICE}/ModelInfer"
_ANSWER_SECONDS = 30
_PORTS = 5
_FLOATS = {"FP32": "<f4", "FP64": "<f8"}
_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("%d %f %f %f %d\\n", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.status + e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Request:
    """What is sent, again and again, to the server's port, or the one behind it for a call over gRPC."""

    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def is_call(self) -> bool:
        return self.path == _CALL

    def ask(self, port: int) -> bytes:
        """The answer's body; raises OSError where there is none."""
        if not self.is_call:
            asked = urllib.request.Request(f"http://127.0.0.1:{port}{self.path}", self.body, {**keys(), **self.headers})
            with urllib.request.urlopen(asked, timeout=_ANSWER_SECONDS) as answer:
                return bytes(answer.read())
        with grpc.insecure_channel(f"127.0.0.1:{port + 1}") as channel:
            try:
                return bytes(channel.unary_unary(_CALL)(self.body, timeout=_ANSWER_SECONDS, metadata=tuple(keys().items())))
            except grpc.RpcError as error:
                raise OSError(str(error)) from error

    def numbers(self, answer: bytes) -> NDArray[Any]:
        """The probabilities that an answer has; raises ValueError where it has none."""
        if self.is_call:
            message = RESPONSES["ModelInfer"].FromString(answer)
            return _numbers([{"datatype": output.datatype} for output in message.outputs], list(message.raw_output_contents))
        head, found = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
        if isinstance(head, dict) and "predictions" in head:
            return np.array(list(head["predictions"][0]["probabilities"].values()))
        outputs = head["outputs"] if isinstance(head, dict) else head
        contents = []
        for output in outputs:
            size = (output.get("parameters") or {}).get("binary_data_size", 0)
            contents.append(answer[found : found + size])
            found += size
        return _numbers(outputs, contents)


@dataclass(frozen=True)
class Result:
    """Of one load: answers a second, milliseconds, and the server's CPU time for each answer in microseconds."""

    rate: float
    p50: float
    p99: float
    cpu: float


def _numbers(outputs: list[dict[str, Any]], contents: list[bytes]) -> NDArray[Any]:
    for output, content in zip(outputs, contents, strict=True):
        if output["datatype"] in _FLOATS:
            return np.array(output["data"]) if "data" in output else np.frombuffer(content, _FLOATS[output["datatype"]])
    raise ValueError("it has no tensor of FP32 or FP64")


def _inputs() -> tuple[list[float], list[int]]:
    """A row, and a picture's pixels."""
    numbers = random.Random(1)
    return [round(numbers.gauss(0, 1), 6) for _ in COLUMNS], [numbers.randrange(256) for _ in range(784)]


def expected(folder: Path) -> dict[str, NDArray[Any]]:
    """Of each model, what the packages in `folder` say to the requests, with no server between."""
    row, pixels = _inputs()
    raws = {
        "mlp": Raw(np.array([row]), {}),
        "cnn": Raw(np.empty((0, 0)), {}, np.array(pixels, np.uint8).reshape(1, 28, 28, 1)),
    }
    return {model: load(folder / model).answer(raw)[0] for model, raw in raws.items()}


def requests() -> dict[str, Request]:
    """By what they are called in the table."""
    row, pixels = _inputs()
    record = json.dumps({"instances": [dict(zip(COLUMNS, row, strict=True))]}).encode()
    columns: list[dict[str, Any]] = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [value]} for name, value in zip(COLUMNS, row, strict=True)
    ]
    rows: dict[str, Any] = {"name": "rows", "shape": [1, len(COLUMNS)], "datatype": "FP32"}
    image: dict[str, Any] = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8"}
    return {
        JSON_ROW: _tensors("mlp", [{**rows, "data": row}]),
        JSON_COLUMNS: _tensors("mlp", columns),
        BINARY_ROW: _tensors("mlp", [rows], np.array(row, "<f4").tobytes()),
        RPC_ROW: _call("mlp", rows, np.array(row, "<f4").tobytes()),
        RECORD: Request("mlp", "/predict", record, {"content-type": "application/json"}),
        JSON_PICTURE: _tensors("cnn", [{**image, "data": pixels}]),
        BINARY_PICTURE: _tensors("cnn", [image], bytes(pixels)),
        RPC_PICTURE: _call("cnn", image, bytes(pixels)),
    }


def _call(model: str, tensor: dict[str, Any], raw: bytes) -> Request:
    message = REQUESTS["ModelInfer"](model_name="m", inputs=[tensor], raw_input_contents=[raw])
    return Request(model, _CALL, message.SerializeToString(), {})


def _tensors(model: str, inputs: list[dict[str, Any]], raw: bytes | None = None) -> Request:
    if raw is None:
        return Request(model, INFER, json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"})
    inputs = [{**inputs[0], "parameters": {"binary_data_size": len(raw)}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(model, INFER, head + raw, headers)


def keys() -> dict[str, str]:
    """Of our replica and of our gateway; others pass them over."""
    return {"x-lepton-replica-token": TOKEN, "authorization": f"Bearer {TOKEN}"}


def free_port() -> int:
    """One that nobody listens at just now, nor at those behind it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as others:
            port = int(taken.getsockname()[1])
            with suppress(OSError, OverflowError):
                for behind in range(port + 1, port + _PORTS):
                    others.enter_context(socket.create_server(("127.0.0.1", behind)))
                return port


def run(request: Request, port: int, seconds: float, core: int, folder: Path, answer: bytes) -> tuple[int, float, float, float, int]:
    """Answers, seconds, p50 and p99 in milliseconds, failures; 32 requests in hand, from one core. `answer`: a right one."""
    if request.is_call:
        metadata = [word for pair in keys().items() for word in pair]
        figures = [str(port + 1), request.path, str(seconds), str(len(answer))]
        load = [sys.executable, "-m", "tools.bench_serving.rpc_load", *figures, *metadata]
    else:
        script = folder / "load.lua"
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in {**keys(), **request.headers}.items()]
        body = "".join(f"\\{byte:03d}" for byte in request.body)
        script.write_text(f'wrk.method = "POST"\nwrk.body = "{body}"\n' + "\n".join(lines) + _DONE)
        load = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}{request.path}"]
    command = ["taskset", "-c", str(core), *load]
    done = subprocess.run(command, input=request.body, check=True, capture_output=True, cwd=ROOT, timeout=seconds + 60)
    found = re.search(r"^(\d+) (\S+) (\S+) (\S+) (\d+)$", said := done.stdout.decode(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: {load[0]} said nothing that is understood:\n{said}")
    count, took, p50, p99, failures = found.groups()
    return int(count), float(took), float(p50), float(p99), int(failures)
