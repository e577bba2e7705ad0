"""`python -m services.deployment.replica --package DIR --ready-file PATH`: serves one model package until SIGTERM, then drains."""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import orjson
import uvloop

from libs.errors import AppError
from libs.modelkit.package import write_file
from libs.modelkit.runtime import load_any
from services.deployment.replica.app import Replica
from services.deployment.replica.rpc import InferenceServer
from services.deployment.replica.server import Server

TOKEN = "LEPTON_REPLICA_TOKEN"
DRAIN_SECONDS = 10


def main() -> int:
    arguments = _parse()
    token = os.environ.pop(TOKEN, "")  # gone from the environment: nothing that is started or dumped later shows it
    if not token:
        print(f"error: {TOKEN} is not set", file=sys.stderr)  # noqa: T201
        return 2
    try:
        runtime = load_any(arguments.package, arguments.threads, arguments.memory_bytes)
        listening = _listen(arguments.host, arguments.port)
    except AppError as error:
        print(f"error: {error.detail}", file=sys.stderr)  # noqa: T201
        return 3
    except OSError as error:
        print(f"error: {arguments.host}:{arguments.port} cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 4
    np.seterr(all="ignore")  # numbers that overflow are refused in words, not warned of
    replica = Replica(runtime, token, arguments.model_name, arguments.model_version)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    try:
        uvloop.run(_serve(replica, listening, arguments.host, arguments.grpc_port, arguments.ready_file))
    except OSError as error:
        print(f"error: {arguments.host}:{arguments.grpc_port} cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 4
    finally:
        runtime.close()
    return 0


async def _serve(replica: Replica, listening: socket.socket, host: str, grpc_port: int, ready_file: Path | None) -> None:
    leaving = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, leaving.set)
    server = Server(replica)
    calls = InferenceServer(replica)
    await server.start(listening)
    grpc_port = await calls.start(host, grpc_port)
    if ready_file:
        host, port = listening.getsockname()[:2]
        write_file(ready_file, orjson.dumps({"host": host, "port": port, "grpc_port": grpc_port, "pid": os.getpid()}))
    await leaving.wait()
    await asyncio.gather(server.drain(DRAIN_SECONDS), calls.drain(DRAIN_SECONDS))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.setblocking(False)
    return listening


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m services.deployment.replica", description=f"Serves a model package. {TOKEN} holds the token."
    )
    parser.add_argument(
        "--package", type=Path, required=True, help="folder with model.json, and weights.safetensors, model.onnx or model.py"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port; the ready file says which")
    parser.add_argument("--grpc-port", type=int, default=0, help="likewise")
    parser.add_argument("--ready-file", type=Path, help="gets {host, port, grpc_port, pid} as JSON once requests are answered")
    parser.add_argument("--model-name", default="model")
    parser.add_argument("--model-version", default="")
    parser.add_argument("--threads", type=int, default=1, help="of one prediction")
    parser.add_argument("--memory-bytes", type=int, default=0, help="that the replica may take; bounds what its owner's code maps")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
