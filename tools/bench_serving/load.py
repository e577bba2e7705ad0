"""Requests by wrk: what they are, and what it says of them."""

import json
import random
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_serving.packages import COLUMNS

TOKEN = "bench"
_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("%d %f %f %f %d\\n", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.status + e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Request:
    """What is sent, again and again."""

    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """Of one load: answers a second, milliseconds, failures, and the server's CPU time for each answer in microseconds."""

    rate: float
    p50: float
    p99: float
    failures: int
    cpu: float


def requests() -> dict[str, Request]:
    """By what they are called in the table."""
    numbers = random.Random(1)
    row = [round(numbers.gauss(0, 1), 6) for _ in COLUMNS]
    pixels = [numbers.randrange(256) for _ in range(784)]
    record = json.dumps({"instances": [dict(zip(COLUMNS, row, strict=True))]}).encode()
    columns: list[dict[str, Any]] = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [value]} for name, value in zip(COLUMNS, row, strict=True)
    ]
    rows: dict[str, Any] = {"name": "rows", "shape": [1, len(COLUMNS)], "datatype": "FP32"}
    image: dict[str, Any] = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8"}
    return {
        "V2 JSON, a row in one tensor": _tensors("mlp", [{**rows, "data": row}]),
        "V2 JSON, a tensor a column": _tensors("mlp", columns),
        "V2 binary, a row in one tensor": _tensors("mlp", [rows], np.array(row, "<f4").tobytes()),
        "/predict, a record": Request("mlp", "/predict", record, {"content-type": "application/json"}),
        "V2 JSON, a picture": _tensors("cnn", [{**image, "data": pixels}]),
        "V2 binary, a picture": _tensors("cnn", [image], bytes(pixels)),
    }


def _tensors(model: str, inputs: list[dict[str, Any]], raw: bytes | None = None) -> Request:
    path = "/v2/models/m/infer"
    if raw is None:
        return Request(model, path, json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"})
    inputs = [{**inputs[0], "parameters": {"binary_data_size": len(raw)}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(model, path, head + raw, headers)


def keys() -> dict[str, str]:
    """Of our replica and of our gateway; others pass them over."""
    return {"x-lepton-replica-token": TOKEN, "authorization": f"Bearer {TOKEN}"}


def free_port() -> int:
    """One that nobody listens at just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def run(request: Request, port: int, seconds: float, core: int, folder: Path) -> tuple[int, float, float, float, int]:
    """Requests, seconds, p50 and p99 in milliseconds, failures; 32 connections, on one core."""
    script = folder / "load.lua"
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in {**keys(), **request.headers}.items()]
    body = "".join(f"\\{byte:03d}" for byte in request.body)
    script.write_text(f'wrk.method = "POST"\nwrk.body = "{body}"\n' + "\n".join(lines) + _DONE)
    command = [
        "taskset",
        "-c",
        str(core),
        "wrk",
        "-t1",
        "-c32",
        f"-d{seconds:g}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}{request.path}",
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^(\d+) (\S+) (\S+) (\S+) (\d+)$", said, re.MULTILINE)
    if found is None:
        raise SystemExit(f"error: wrk said nothing that is understood:\n{said}")
    count, took, p50, p99, failures = found.groups()
    return int(count), float(took), float(p50), float(p99), int(failures)
