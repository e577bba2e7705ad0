"""What most would write first for gRPC: grpc.aio and the protocol's messages. `grpc_aio.py PACKAGE PORT`; it listens behind that port."""

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
from network import Network
from tritonclient.grpc import service_pb2, service_pb2_grpc

TYPES = {"FP32": "<f4", "UINT8": "u1"}


class Served(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.network = Network(sys.argv[1])

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        tensor = request.inputs[0]
        output = self.network(np.frombuffer(request.raw_input_contents[0], TYPES[tensor.datatype]).reshape(tensor.shape))
        response = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[output.tobytes()])
        response.outputs.add(name="y", datatype="FP32", shape=output.shape)
        return response


async def main() -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Served(), server)
    server.add_insecure_port(f"127.0.0.1:{int(sys.argv[2]) + 1}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
