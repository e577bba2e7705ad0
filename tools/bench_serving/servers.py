"""Each server as a process of its own, pinned to one core: ours, two plain ones, and the peers that are installed."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools.bench_serving.load import TOKEN, Request, keys
from tools.proto import ROOT

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Server:
    """`venv`: the folder in BENCH_PEERS that it is installed into, "" for what every checkout has. `gone`: why it cannot be measured."""

    name: str
    script: str
    venv: str = ""
    gone: str = ""


# A whole platform: key, quota, rate limit, routing and metering, and one trace in a hundred kept.
GATEWAY = "gateway"
SERVERS = (
    Server("Lepton replica", ""),
    Server("Lepton gateway, and its replica on the other core", GATEWAY),
    Server("bare ASGI + ONNX Runtime, no checks", "asgi_onnx.py"),
    Server("FastAPI + torch", "fastapi_torch.py"),
    Server("LitServe", "litserve_app.py", "litserve"),
    Server("MLServer", "mlserver_app.py", "mlserver"),
    Server("KServe", "kserve_app.py", "kserve"),
    Server("BentoML", "bentoml_app.py", "bentoml"),
    Server("Ray Serve", "ray_app.py", "ray"),
    Server("TorchServe", "", "torchserve", "it is no longer maintained and needs Java"),
)


class DoesNotAnswer(Exception):
    """It ended, or two minutes passed."""


def missing(server: Server, peers: Path) -> str:
    """Why it cannot run here, in words; "" if it can."""
    if server.gone:
        return server.gone
    if server.venv and not (peers / server.venv / "bin" / "python").exists():
        return f"not installed: make the environment {peers / server.venv} and install {server.venv} into it"
    return ""


@contextmanager
def running(server: Server, packages: Path, request: Request, port: int, core: int, peers: Path) -> Iterator[int]:
    """The process's id, once it has answered the request."""
    package = packages / request.model
    if server.script == GATEWAY:
        command = [sys.executable, "-m", "tools.bench_serving.gateway", str(packages), str(port)]
    elif server.script:
        python = peers / server.venv / "bin" / "python" if server.venv else Path(sys.executable)
        command = [str(python), str(PEERS / server.script), str(package), str(port)]
    else:
        command = [sys.executable, "-m", "services.deployment.replica", "--package", str(package), "--model-name", "m", "--port", str(port)]
    environment = {**os.environ, "LEPTON_REPLICA_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path(server)}
    log = packages / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], cwd=packages, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _await_answer(process, request, port, log)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):  # those that its end left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def processor_seconds(pid: int) -> float:
    """What a process and those that it started have used."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
    return total


def _path(server: Server) -> str:
    """A peer sees nothing of ours."""
    return "" if server.venv else f"{ROOT}:{ROOT / 'build' / 'proto'}"


def _await_answer(process: "subprocess.Popen[bytes]", request: Request, port: int, log: Path) -> None:
    end = time.monotonic() + 120
    headers = {**keys(), **request.headers}
    ask = urllib.request.Request(f"http://127.0.0.1:{port}{request.path}", request.body, headers)
    while True:
        try:
            urllib.request.urlopen(ask, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            if process.poll() is not None or time.monotonic() > end:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise DoesNotAnswer(f"it does not answer; it said: {''.join(last)[:200]}") from None
            time.sleep(0.1)
