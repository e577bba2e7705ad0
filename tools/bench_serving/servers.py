"""Each server as a process of its own, pinned to one core: ours, plain ones, and the peers that are installed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tools.bench_serving.load import (
    BINARY_PICTURE,
    BINARY_ROW,
    INFER,
    JSON_COLUMNS,
    JSON_PICTURE,
    JSON_ROW,
    RECORD,
    RPC_PICTURE,
    RPC_ROW,
    TOKEN,
    Request,
)
from tools.proto import ROOT

PEERS = Path(__file__).parent / "peers"
_START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """`kinds`: the requests that it takes. `needs`: what is installed for it, by itself; none for what every checkout has."""

    name: str
    script: str
    kinds: Sequence[str] = (JSON_ROW, JSON_PICTURE)
    needs: Sequence[str] = ()
    path: str = INFER

    def python(self, peers: Path) -> Path:
        return peers / self.script.removesuffix("_app.py") / "bin" / "python" if self.needs else Path(sys.executable)


@dataclass
class Session:
    """A server that runs, and how many seconds it took from its process's start to its first answer."""

    process: psutil.Process
    first: float

    def processor_seconds(self) -> float:
        """What it and those that it started have used."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def bytes(self) -> int:
        """Of memory, pages that its processes share counted in each."""
        return int(self._sum(lambda process: process.memory_info().rss))

    def _sum(self, of: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += of(process)
        return total


REPLICA, GATEWAY = "", "gateway"
_CALLS = (RPC_ROW, RPC_PICTURE)
_NETWORK = "onnxruntime==1.32.0"
SERVERS = (
    Server("Lepton replica", REPLICA, (JSON_ROW, JSON_COLUMNS, BINARY_ROW, RPC_ROW, RECORD, JSON_PICTURE, BINARY_PICTURE, RPC_PICTURE)),
    # A whole platform: key, quota, rate limit, routing and metering, and one trace in a hundred kept.
    Server("Lepton gateway, and its replica on the other core", GATEWAY, (JSON_ROW, BINARY_ROW, RPC_ROW)),
    Server("bare ASGI + ONNX Runtime, no checks", "asgi_onnx.py"),
    Server("FastAPI + torch", "fastapi_torch.py"),
    Server("grpc.aio + ONNX Runtime, no checks", "grpc_aio.py", _CALLS),
    Server("LitServe", "litserve_app.py", needs=("litserve==0.2.19", _NETWORK)),
    Server("MLServer", "mlserver_app.py", (JSON_ROW, JSON_PICTURE, *_CALLS), ("mlserver==1.7.1", _NETWORK)),
    Server("KServe", "kserve_app.py", (JSON_ROW, BINARY_ROW, JSON_PICTURE, BINARY_PICTURE, *_CALLS), ("kserve==0.21.0", _NETWORK)),
    Server("BentoML", "bentoml_app.py", needs=("bentoml==1.4.40", _NETWORK)),
    Server("Ray Serve", "ray_app.py", needs=("ray[serve]==2.60.0", _NETWORK)),
    Server(
        "TorchServe",
        "torchserve_app.py",
        needs=("torchserve==0.12.0", "torch-model-archiver==0.12.0", "torch==2.15.0", "pyyaml==6.0.3", _NETWORK),
        path="/predictions/m",
    ),
)


class DoesNotAnswer(Exception):
    """It ended, two minutes passed, or its answer is wrong."""


def install(server: Server, peers: Path) -> None:
    """Makes its environment, or brings it to what is pinned; takes some seconds where nothing is to be done."""
    uv = subprocess.run(["bash", "-c", ". tools/uv.sh && find_uv"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    python = server.python(peers)
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1])], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *server.needs], check=True)


@contextmanager
def running(server: Server, packages: Path, request: Request, port: int, core: int, peers: Path) -> Iterator[Session]:
    """Once it has answered the request. Raises DoesNotAnswer."""
    package = packages / request.model
    if server.script == GATEWAY:
        command = [sys.executable, "-m", "tools.bench_serving.gateway", str(packages), str(port)]
    elif server.script == REPLICA:
        ports = ["--port", str(port), "--grpc-port", str(port + 1)]
        command = [sys.executable, "-m", "services.deployment.replica", "--package", str(package), "--model-name", "m", *ports]
    else:
        if not (python := server.python(peers)).exists():
            raise DoesNotAnswer(f"it is not installed into {python.parents[1]}; BENCH_ARGS=--install does it")
        command = [str(python), str(PEERS / server.script), str(package), str(port)]
    environment = {
        **os.environ,
        "LEPTON_REPLICA_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": _path(server),
        "TMPDIR": str(packages),
    }
    log = packages / "log"
    begun = time.monotonic()
    with log.open("wb") as file:
        pinned = ["taskset", "-c", str(core), *command]
        popen = subprocess.Popen(pinned, cwd=packages, env=environment, stdout=file, stderr=file, start_new_session=True)
    process = psutil.Process(popen.pid)
    try:
        _await_answer(popen, request, port, log)
        yield Session(process, time.monotonic() - begun)
    finally:
        _end(popen, process)


def _end(popen: "subprocess.Popen[bytes]", process: psutil.Process) -> None:
    """It and those that it started, whatever groups they went to."""
    started = process.children(recursive=True) if popen.poll() is None else []
    popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        popen.wait(15)
    for child in started:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()
    psutil.wait_procs(started, 5)


def _path(server: Server) -> str:
    """A peer sees nothing of ours."""
    return "" if server.needs else f"{ROOT}:{ROOT / 'build' / 'proto'}"


def _await_answer(popen: "subprocess.Popen[bytes]", request: Request, port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            request.ask(port)
            return
        except OSError:
            if popen.poll() is not None or time.monotonic() > end:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise DoesNotAnswer(f"it does not answer; it said: {''.join(last)[:200]}") from None
            time.sleep(0.01)
