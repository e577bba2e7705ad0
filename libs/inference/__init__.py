"""The Open Inference Protocol over gRPC: its service and its messages, as `proto/inference` describes them.

In a pool of their own: a client's types of the same names may live in this process too.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass


def _service() -> Any:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files("lepton").joinpath("inference.binpb").read_bytes()).file:
        pool.Add(file)
    return pool.FindServiceByName("inference.GRPCInferenceService")


_SERVICE = _service()
SERVICE: str = _SERVICE.full_name
# By a method's name, of those with one request and one answer.
REQUESTS: dict[str, Any] = {method.name: GetMessageClass(method.input_type) for method in _SERVICE.methods if not method.server_streaming}
# Of all.
RESPONSES: dict[str, Any] = {method.name: GetMessageClass(method.output_type) for method in _SERVICE.methods}

__all__ = ["REQUESTS", "RESPONSES", "SERVICE"]
