"""MLServer with a runtime of its own, and no parallel workers. `mlserver_app.py PACKAGE PORT`; gRPC at the port behind it."""

import asyncio
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from network import Network


class Model(MLModel):
    async def load(self) -> bool:
        self.network = Network(sys.argv[1])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        output = self.network(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name="m", outputs=[NumpyCodec.encode_output("y", output)])


async def main() -> None:
    port = int(sys.argv[2])
    settings = Settings(http_port=port, grpc_port=port + 1, metrics_endpoint=None, parallel_workers=0, debug=False, host="127.0.0.1")
    await MLServer(settings).start([ModelSettings(name="m", implementation=Model)])


asyncio.run(main())
