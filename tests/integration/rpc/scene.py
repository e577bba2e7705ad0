"""What the tests of calls between processes stand on: a small compute service, an authority that signs certificates, a name server."""

import asyncio
import datetime
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lepton.common.v1 import resource_pb2
from lepton.compute.v1 import allocation_pb2, compute_service_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer, add_ComputeServiceServicer_to_server
from libs.rpc import Server, TlsSettings, Verifier, current_call


class Compute(ComputeServiceServicer):
    """Counts what it is asked for."""

    def __init__(self, name: str = "", seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds
        self.created: list[str] = []
        self.gets = 0
        self.remaining: list[float] = []

    async def CreateAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        self.created.append(request.holder)
        self.remaining.append(current_call().remaining() or 0.0)
        await asyncio.sleep(self.seconds)
        return allocation_pb2.Allocation(id=request.holder, node=self.name)

    async def GetAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        self.gets += 1
        await asyncio.sleep(self.seconds)
        return allocation_pb2.Allocation(id=request.id, node=self.name, workspace=current_call().identity.workspace)


def server_of(compute: Any, listen: str, public_key: str, tls: TlsSettings | None = None, **more: Any) -> Server:
    registrations = [(compute, add_ComputeServiceServicer_to_server)]
    return Server(listen, registrations, verifier=Verifier(public_key), tls=tls, **more)


def create(holder: str) -> compute_service_pb2.CreateAllocationRequest:
    return compute_service_pb2.CreateAllocationRequest(workspace="acme", holder=holder, resources=resource_pb2.Resources(count=1))


def get(name: str = "a") -> compute_service_pb2.GetAllocationRequest:
    return compute_service_pb2.GetAllocationRequest(id=name)


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._key = folder, generate_private_key(SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        certificate = self._sign(self._subject, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, *hosts: str) -> TlsSettings:
        """A certificate of `name` for `hosts`, by default 127.0.0.1; the same name again renews it in place."""
        key = generate_private_key(SECP256R1())
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts or ("127.0.0.1",)
        ]
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.SubjectAlternativeName(alternatives))
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TlsSettings(ca_file=str(self.file), cert_file=str(files[0]), key_file=str(files[1]))

    def _sign(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        return builder.add_extension(extension, critical=False).sign(self._key, SHA256())


class Names(asyncio.DatagramProtocol):
    """A name server: every name stands for `addresses`."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        self.asked += 1
        end = data.index(b"\0", 12) + 5
        kind = struct.unpack("!H", data[end - 4 : end - 2])[0]
        found = self.addresses if kind == 1 else []
        answers = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in found)
        self._transport.sendto(data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0) + data[12:end] + answers, sender)


@asynccontextmanager
async def name_server() -> AsyncIterator[tuple[Names, str]]:
    """It and its "host:port"."""
    transport, names = await asyncio.get_running_loop().create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    try:
        yield names, "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
