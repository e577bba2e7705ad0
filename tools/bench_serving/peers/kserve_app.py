"""KServe's own model server, without its sidecars. `kserve_app.py PACKAGE PORT`."""

import sys
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from network import Network


class Served(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.network = Network(sys.argv[1])
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        output = self.network(payload.inputs[0].as_numpy())
        answer = InferOutput("y", list(output.shape), "FP32", data=output.flatten().tolist())
        return InferResponse(payload.id or "0", "m", [answer])


ModelServer(http_port=int(sys.argv[2]), workers=1, enable_grpc=False, access_log_format=None).start([Served()])
