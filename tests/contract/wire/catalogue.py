"""Every event and every RPC that proto/ declares, found by walking the descriptors: nothing here is a list to keep."""

from importlib import import_module
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

ROOT = Path(__file__).parents[3]


def _modules(pattern: str) -> list[Any]:
    files = sorted((ROOT / "proto").glob(f"lepton/*/v1/{pattern}.proto"))
    return [import_module(".".join(file.relative_to(ROOT / "proto").with_suffix("").parts) + "_pb2") for file in files]


EVENTS: dict[str, type[Message]] = {
    descriptor.full_name: message_factory.GetMessageClass(descriptor)
    for module in _modules("events")
    for descriptor in module.DESCRIPTOR.message_types_by_name.values()
}
SERVICES: dict[str, ServiceDescriptor] = {
    descriptor.full_name.split(".")[1]: descriptor
    for module in _modules("*_service")
    for descriptor in module.DESCRIPTOR.services_by_name.values()
}
METHODS: dict[str, MethodDescriptor] = {method.full_name: method for service in SERVICES.values() for method in service.methods}


def service_of(full_name: str) -> str:
    """ "lepton.data.v1.DatasetDeleted" → "data"."""
    return full_name.split(".")[1]


def generated(service: str, suffix: str) -> Any:
    """A class of the module that gRPC generated for a service: "Servicer", "Stub"."""
    module = import_module(f"lepton.{service}.v1.{service}_service_pb2_grpc")
    return getattr(module, SERVICES[service].name + suffix)


def servicer(service: str) -> Any:
    """The class by which a service answers."""
    return getattr(import_module(f"services.{service}.servicer"), SERVICES[service].name.removesuffix("Service") + "Servicer")
