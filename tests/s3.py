"""Real stores of S3 for tests: MinIO, the server of compose.yaml, and versitygw, which shares nothing with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from minio import Minio
from pydantic import SecretStr
from testcontainers.core.container import DockerContainer

from libs.rpc import TlsSettings
from libs.storage import StorageSettings
from tests.backends import image, require_docker, until
from tests.platform import free_port

ACCESS_KEY, SECRET_KEY = "lepton", "a-secret-of-tests"


@dataclass
class S3Server:
    """One server, at the same address also after it was stopped and started again."""

    container: DockerContainer
    address: str
    ca_file: str = ""

    def settings(self, **changes: object) -> StorageSettings:
        """Buckets with a prefix that no other test has, and short time limits."""
        words = {
            "url": f"{'s3' if self.ca_file else 's3+http'}://{self.address}",
            "ca_file": self.ca_file,
            "access_key": ACCESS_KEY,
            "secret_key": SecretStr(SECRET_KEY),
            "bucket_prefix": f"t{uuid4().hex[:12]}-",
            "public_url": f"http://{self.address}",
            "read_seconds": 20.0,
        }
        return StorageSettings(**{**words, **changes})

    @property
    def host(self) -> str:
        """Where the ports of containers are reached."""
        return self.address.partition(":")[0]

    @property
    def client(self) -> Minio:
        """Past the adapter, to see and to break what it keeps."""
        return Minio(self.address, ACCESS_KEY, SECRET_KEY, secure=False, region="us-east-1")

    def stop(self) -> None:
        self.container.get_wrapped_container().kill()

    def start(self) -> None:
        self.container.get_wrapped_container().start()
        self.wait()

    def wait(self) -> None:
        url = f"{'https' if self.ca_file else 'http'}://{self.address}/"
        until(lambda: httpx.get(url, timeout=2, verify=False).status_code in (200, 403), f"S3 at {self.address}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It keeps its connections and says nothing."""
        self.container.get_wrapped_container().pause()
        try:
            yield
        finally:
            self.container.get_wrapped_container().unpause()


@contextmanager
def minio_server() -> Iterator[S3Server]:
    """MinIO, listening."""
    environment = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    with _served(image("minio"), 9000, environment, ["server", "/data", "--address", ":9000"]) as server:
        yield server


@contextmanager
def versitygw_server(tls: TlsSettings | None = None) -> Iterator[S3Server]:
    """versitygw on a folder, listening; with a certificate it speaks TLS."""
    environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    name = os.environ.get("LEPTON_VERSITYGW_IMAGE") or "versity/versitygw:v1.8.0"
    options = ["--cert", tls.cert_file, "--key", tls.key_file] if tls else []
    with _served(name, 7070, environment, ["--port", ":7070", "--quiet", *options, "posix", "/data"], tls) as server:
        yield server


@contextmanager
def _served(name: str, port: int, environment: dict[str, str], command: list[str], tls: TlsSettings | None = None) -> Iterator[S3Server]:
    require_docker()
    outside = free_port()
    container = DockerContainer(name).with_bind_ports(port, outside).with_command(command)
    for key, value in environment.items():
        container = container.with_env(key, value)
    if tls:
        container = container.with_volume_mapping(str(Path(tls.cert_file).parent), str(Path(tls.cert_file).parent), "ro")
    with container:
        server = S3Server(container, f"{container.get_container_host_ip()}:{outside}", tls.ca_file if tls else "")
        server.wait()
        yield server


@pytest.fixture(scope="session")
def minio() -> Iterator[S3Server]:
    """One for the session."""
    with minio_server() as server:
        yield server


@pytest.fixture(scope="session")
def versitygw() -> Iterator[S3Server]:
    """One for the session."""
    with versitygw_server() as server:
        yield server
