"""KServe's own model server, without its sidecars. `kserve_app.py PACKAGE PORT`; gRPC at the port behind it."""

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
        answer = InferOutput("y", list(output.shape), "FP32")
        answer.set_data_from_numpy(output, binary_data=payload.from_grpc or payload.use_binary_outputs)
        return InferResponse(payload.id or "0", "m", [answer], use_binary_outputs=payload.use_binary_outputs)


port = int(sys.argv[2])
ModelServer(http_port=port, grpc_port=port + 1, workers=1, access_log_format=None).start([Served()])
