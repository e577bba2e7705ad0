"""What these tests share: telemetry that ends with its test, a real Prometheus, and every metric that the code declares."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import structlog
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from libs import telemetry
from libs.telemetry.metrics import Declared
from tests.backends import image, require_docker, until
from tests.collector import OBSERVABILITY

ALERTS = Path(__file__).parent / "alerts.yml"
# The composition roots know every module that declares one.
MODULES = (
    *(f"services.{name}.main" for name in ("accounts", "compute", "data", "deployment", "gateway", "marketplace", "training")),
    "services.standalone.node",
)


@pytest.fixture
def quiet() -> Iterator[None]:
    """`telemetry.setup` in this process; what it changed is put back."""
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    telemetry.shutdown()
    structlog.configure(**config)
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="session")
def declared() -> dict[str, Declared]:
    """By name; in a process of its own, because tests declare some too."""
    code = f"""
import dataclasses, importlib, json
for name in {MODULES!r}: importlib.import_module(name)
from libs.telemetry import declared_metrics
print(json.dumps([dataclasses.astuple(each) for each in declared_metrics()]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {name: Declared(name, kind, tuple(labels), description) for name, kind, labels, description in json.loads(found)}


class Prometheus:
    """A running one, with the platform's own configuration."""

    def __init__(self, container: DockerContainer) -> None:
        self._container = container
        self.url = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(9090)}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Its result; raises HTTPError where the expression is not valid."""
        with urlopen(f"{self.url}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def promtool(self, *words: str) -> tuple[int, str]:
        """Exit code and output."""
        code, output = self._container.exec(["promtool", *words])
        return code, output.decode()

    def lint(self, text: str) -> tuple[int, str]:
        """What promtool says of a page of metrics."""
        code, output = self._container.exec(["sh", "-c", 'printf %s "$0" | promtool check metrics', text])
        return code, output.decode()


@pytest.fixture(scope="session")
def prometheus() -> Iterator[Prometheus]:
    """Beside it in its network are two replicas of a worker, which are other Prometheis: they too speak of themselves."""
    require_docker()
    with Network() as network:

        def made() -> DockerContainer:
            return DockerContainer(image("prometheus")).with_network(network)

        replicas = [made().with_network_aliases("worker") for _ in range(2)]
        for replica in replicas:
            replica.with_volume_mapping(str(OBSERVABILITY / "prometheus"), "/etc/prometheus", "ro")
            replica.with_command("--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus --web.listen-address=:9464")
        container = made().with_exposed_ports(9090)
        container.with_volume_mapping(str(OBSERVABILITY / "prometheus"), "/etc/prometheus", "ro")
        container.with_volume_mapping(str(ALERTS), "/tests/alerts.yml", "ro")
        with replicas[0], replicas[1], container:
            running = Prometheus(container)
            until(lambda: urlopen(f"{running.url}/-/ready", timeout=2), "Prometheus")
            yield running
