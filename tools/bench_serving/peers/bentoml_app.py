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

    @bentoml.api(route="/v2/models/m/infer")
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = self.network(np.array(inputs[0]["data"], np.float32).reshape(inputs[0]["shape"]))
        answer = {"name": "y", "datatype": "FP32", "shape": list(output.shape), "data": output.flatten().tolist()}
        return {"model_name": "m", "outputs": [answer]}


if __name__ == "__main__":
    os.environ["BENCH_PACKAGE"] = sys.argv[1]
    os.chdir(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_app:Served", "--port", sys.argv[2]]
    os.execv(sys.executable, command)
