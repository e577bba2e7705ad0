"""Clients of the services behind the gateway."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from lepton.accounts.v1 import accounts_service_pb2, accounts_service_pb2_grpc
from lepton.compute.v1 import compute_service_pb2, compute_service_pb2_grpc
from lepton.data.v1 import data_service_pb2, data_service_pb2_grpc
from lepton.deployment.v1 import deployment_service_pb2, deployment_service_pb2_grpc
from lepton.marketplace.v1 import marketplace_service_pb2, marketplace_service_pb2_grpc
from lepton.training.v1 import training_service_pb2, training_service_pb2_grpc
from libs.rpc import Client, PeerSettings, Signer, TlsSettings

_STUBS: dict[str, Callable[[Any], Any]] = {
    "accounts": accounts_service_pb2_grpc.AccountsServiceStub,
    "data": data_service_pb2_grpc.DataServiceStub,
    "compute": compute_service_pb2_grpc.ComputeServiceStub,
    "training": training_service_pb2_grpc.TrainingServiceStub,
    "deployment": deployment_service_pb2_grpc.DeploymentServiceStub,
    "marketplace": marketplace_service_pb2_grpc.MarketplaceServiceStub,
}
SERVICES: Mapping[str, ServiceDescriptor] = {
    "accounts": accounts_service_pb2.DESCRIPTOR.services_by_name["AccountsService"],
    "data": data_service_pb2.DESCRIPTOR.services_by_name["DataService"],
    "compute": compute_service_pb2.DESCRIPTOR.services_by_name["ComputeService"],
    "training": training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"],
    "deployment": deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"],
    "marketplace": marketplace_service_pb2.DESCRIPTOR.services_by_name["MarketplaceService"],
}


@dataclass(frozen=True)
class Peers:
    """A lifecycle component: one client a service."""

    accounts: Client
    data: Client
    compute: Client
    training: Client
    deployment: Client
    marketplace: Client

    def by_name(self) -> dict[str, Client]:
        """All of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    async def ready(self) -> dict[str, bool]:
        """Which of them say that they serve."""
        clients = self.by_name()
        answers = await asyncio.gather(*(client.ready() for client in clients.values()))
        return dict(zip(clients, answers, strict=True))

    async def start(self) -> None:
        """Clients connect when they are used."""

    async def stop(self) -> None:
        """Closes the connections."""
        for client in self.by_name().values():
            await client.close()


def connect(addresses: PeerSettings, signer: Signer, tls: TlsSettings) -> Peers:
    """Clients of the services at these addresses; raises ValueError for one that is not said."""
    missing = [name for name in _STUBS if not getattr(addresses, name)]
    if missing:
        raise ValueError(f"no address of {', '.join(missing)}: set LEPTON_GATEWAY_PEERS__{missing[0].upper()}")
    return Peers(**{name: Client(stub, getattr(addresses, name), signer, tls=tls) for name, stub in _STUBS.items()})
