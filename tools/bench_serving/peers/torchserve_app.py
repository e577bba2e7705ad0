"""TorchServe with one worker and its batching. `torchserve_app.py PACKAGE PORT`; it is the handler too, in a worker of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, os.environ.get("BENCH_SCRIPTS", ""))  # a worker runs a copy of this file
from network import Network

MODEL = """
minWorkers: 1
maxWorkers: 1
batchSize: 32
maxBatchDelay: 1
"""
CONFIG = """
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
grpc_inference_port={grpc}
grpc_management_port={grpc_management}
disable_token_authorization=true
enable_envvars_config=false
number_of_netty_threads=1
netty_client_threads=1
model_store={store}
load_models=m
vmargs=-Xmx512m
"""
# A line a request would be measured too.
LOGS = """<Configuration><Appenders><Console name="out"><PatternLayout pattern="%m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""


class Served:
    def initialize(self, context: Any) -> None:
        self.network = Network(os.environ["BENCH_PACKAGE"])

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        tensors = [request["body"]["inputs"][0] for request in requests]
        rows = np.stack([np.array(tensor["data"], np.float32).reshape(tensor["shape"])[0] for tensor in tensors])
        answers = [{"name": "y", "datatype": "FP32", "shape": [1, row.size], "data": row.tolist()} for row in self.network(rows)]
        return [{"model_name": "m", "outputs": [answer]} for answer in answers]


def main() -> None:
    package, port = sys.argv[1], int(sys.argv[2])
    binaries, here = Path(sys.executable).parent, Path(tempfile.mkdtemp(prefix="torchserve-"))
    store = here / "store"
    store.mkdir()
    (here / "model.yaml").write_text(MODEL)
    archiver = [binaries / "torch-model-archiver", "--model-name", "m", "--version", "1", "--handler", __file__]
    subprocess.run([*archiver, "--export-path", store, "--config-file", here / "model.yaml", "--archive-format", "no-archive"], check=True)
    numbers = dict(zip(("port", "management", "metrics", "grpc", "grpc_management"), range(port, port + 5), strict=True))
    (here / "config.properties").write_text(CONFIG.format(store=store, **numbers))
    (here / "log4j2.xml").write_text(LOGS)
    logs = dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(here))
    paths = {"BENCH_PACKAGE": package, "BENCH_SCRIPTS": str(Path(__file__).parent), **logs}
    environment = {**os.environ, **paths, "PATH": f"{binaries}:{os.environ['PATH']}"}
    os.chdir(here)
    serve = [str(binaries / "torchserve"), "--start", "--foreground", "--ts-config", "config.properties", "--log-config", "log4j2.xml"]
    os.execve(serve[0], [*serve, "--disable-token-auth"], environment)


if __name__ == "__main__":
    main()
