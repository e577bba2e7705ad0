"""`python -m services.deployment.replica --package DIR --ready-file PATH`: serves one model package until SIGTERM, then drains."""

import argparse
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import orjson
import uvicorn

from libs.errors import AppError
from libs.modelkit.package import write_file
from libs.modelkit.runtime import load
from services.deployment.replica.app import Replica

TOKEN = "LEPTON_REPLICA_TOKEN"
DRAIN_SECONDS = 10


class Server(uvicorn.Server):
    """uvicorn that tells a file where it listens, once it does."""

    ready_file: Path | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready_file and self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            write_file(self.ready_file, orjson.dumps({"host": host, "port": port, "pid": os.getpid()}))


def main() -> int:
    arguments = _parse()
    token = os.environ.pop(TOKEN, "")  # gone from the environment: nothing that is started or dumped later shows it
    if not token:
        print(f"error: {TOKEN} is not set", file=sys.stderr)  # noqa: T201
        return 2
    try:
        runtime = load(arguments.package, arguments.threads)
        listening = _listen(arguments.host, arguments.port)
    except AppError as error:
        print(f"error: {error.detail}", file=sys.stderr)  # noqa: T201
        return 3
    except OSError as error:
        print(f"error: {arguments.host}:{arguments.port} cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 4
    app = Replica(runtime, token, arguments.model_name, arguments.model_version)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look at it again
    server = Server(_configure(app))
    server.ready_file = arguments.ready_file
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn drains and then raises it again: leaving cleanly is no failure
    server.run([listening])
    return 0


def _configure(app: Replica) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        loop="auto",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        server_header=False,
        date_header=False,
        log_level="warning",
        backlog=2048,
        timeout_keep_alive=75,  # the router keeps its connections
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


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
    parser.add_argument("--package", type=Path, required=True, help="folder with model.json, weights.safetensors, model.onnx")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port; the ready file says which")
    parser.add_argument("--ready-file", type=Path, help="gets {host, port, pid} as JSON once requests are answered")
    parser.add_argument("--model-name", default="model")
    parser.add_argument("--model-version", default="")
    parser.add_argument("--threads", type=int, default=1, help="of one prediction")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
