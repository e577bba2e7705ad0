"""BentoML, with its batching. `bentoml_app.py PACKAGE PORT`; it starts itself once more, as its own command."""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from network import Network


@bentoml.service(workers=1)
class Served:
    def __init__(self) -> None:
        self.network = Network(os.environ["BENCH_PACKAGE"])

    @bentoml.api(route="/v2/models/m/infer", batchable=True, max_batch_size=32, max_latency_ms=1000)
    def infer(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = np.stack([np.array(tensor["data"], np.float32).reshape(tensor["shape"])[0] for tensor in inputs])
        return [{"name": "y", "datatype": "FP32", "shape": [1, row.size], "data": row.tolist()} for row in self.network(rows)]


if __name__ == "__main__":
    os.environ["BENCH_PACKAGE"] = sys.argv[1]
    os.chdir(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_app:Served", "--host", "127.0.0.1", "--port", sys.argv[2]]
    os.execv(sys.executable, command)
