"""What inference over gRPC takes beside HTTP's, through the gateway and of the replica itself, in one run on one whole platform.

`python -m tools.bench_serving.calls [SECONDS]`: of each load. Callers and servers share the machine: ratios count, not rates.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc.aio
import numpy as np
import psutil

import leptonai as la
from libs.inference import REQUESTS, SERVICE
from services.standalone.control import start_platform, stop_platform
from services.standalone.home import Home
from tools.bench_serving.gateway import deploy
from tools.bench_serving.load import TOKEN, Request, free_port, requests
from tools.bench_serving.packages import COLUMNS

TRIES = 2
Ask = Callable[[], Awaitable[None]]
Connect = Callable[[], Awaitable[Ask]]


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 3.0
    os.environ |= {"LEPTON_API_KEY": TOKEN, "LEPTON_PLATFORM_TELEMETRY_SAMPLE": "0.01"}
    with tempfile.TemporaryDirectory(prefix="lepton-bench-home-") as name:
        home = Home(Path(name))
        child, said = start_platform(home, host="127.0.0.1", port=free_port(), grpc_port=free_port())
        try:
            deploy(la.Client(TOKEN, said["url"]))
            # Of the one replica that there is.
            ready = json.loads(next(Path(name).rglob("ready")).read_bytes())
            asyncio.run(_measure(said, ready, _servers(child.pid), seconds))
        finally:
            if running := home.running():
                stop_platform(running)
            child.wait()


def _servers(platform: int) -> dict[str, psutil.Process]:
    words = {"gateway": "services.standalone.gateway", "replica": "services.deployment.replica"}
    children = [(process, process.cmdline()) for process in psutil.Process(platform).children(recursive=True)]
    return {name: next(process for process, line in children if line[1:3] == ["-m", word]) for name, word in words.items()}


async def _measure(said: Mapping[str, str], ready: Mapping[str, int], servers: Mapping[str, psutil.Process], seconds: float) -> None:
    token = servers["replica"].environ()["LEPTON_REPLICA_TOKEN"]
    by_token, by_key = {"x-lepton-replica-token": token}, {"authorization": f"Bearer {TOKEN}"}
    binary = requests()["V2 binary, a row in one tensor"]
    ways: dict[str, Connect] = {
        "gRPC, the replica itself": lambda: _grpc(f"127.0.0.1:{ready['grpc_port']}", by_token),
        "gRPC, by the gateway": lambda: _grpc(said["grpc"], by_key),
        "HTTP, the replica itself": lambda: _http(ready["port"], binary, by_token),
        "HTTP, by the gateway": lambda: _http(int(said["url"].rpartition(":")[2]), binary, by_key),
    }
    print("| way | callers | answers/s | p50 ms | p99 ms | CPU µs, gateway | CPU µs, replica |")
    for callers in (1, 32):
        for name, connect in list(ways.items()) * TRIES:
            print(f"| {name} | {callers} | {await _load(connect, callers, seconds, servers)} |", flush=True)


async def _load(connect: Connect, callers: int, seconds: float, servers: Mapping[str, psutil.Process]) -> str:
    asking = [await connect() for _ in range(callers)]
    spent = [_processor_seconds(process) for process in servers.values()]
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def call(ask: Ask) -> None:
        while (begun := time.perf_counter()) < until:
            await ask()
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*map(call, asking))
    each = [(_processor_seconds(process) - before) / len(took) * 1e6 for process, before in zip(servers.values(), spent, strict=True)]
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return " | ".join([f"{len(took) / seconds:.0f}", f"{p50:.2f}", f"{p99:.2f}", *(f"{micros:.0f}" for micros in each)])


async def _grpc(address: str, metadata: Mapping[str, str]) -> Ask:
    channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    send = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    request = REQUESTS["ModelInfer"](model_name="m", raw_input_contents=[np.zeros(len(COLUMNS), "<f4").tobytes()])
    request.inputs.add(name="rows", datatype="FP32", shape=[1, len(COLUMNS)])
    body = request.SerializeToString()

    async def ask() -> None:
        await send(body, metadata=tuple(metadata.items()))

    await ask()
    return ask


async def _http(port: int, request: Request, headers: Mapping[str, str]) -> Ask:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {"host": "m", "content-length": str(len(request.body)), **request.headers, **headers}
    head = f"POST {request.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    message = head.encode() + b"\r\n" + request.body

    async def ask() -> None:
        writer.write(message)
        status, *answered = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        assert b" 200 " in status, status
        [length] = [int(line.split(b":")[1]) for line in answered if line.startswith(b"content-length:")]
        await reader.readexactly(length)

    await ask()
    return ask


def _processor_seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


if __name__ == "__main__":
    main()
