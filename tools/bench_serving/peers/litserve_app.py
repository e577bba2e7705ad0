"""LitServe, with its batching. `litserve_app.py PACKAGE PORT`."""

import sys
from typing import Any

import litserve
import numpy as np
from network import Network


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = Network(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> Any:
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])[0]

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, rows: Any) -> Any:
        return self.network(rows)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        answer = {"name": "y", "datatype": "FP32", "shape": [1, len(output)], "data": output.tolist()}
        return {"model_name": "m", "outputs": [answer]}


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.001, api_path="/v2/models/m/infer")
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
