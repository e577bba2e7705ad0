"""A collector that passes traces on to a Jaeger, in containers, from the collector's own configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import urlopen

import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.backends import COMPOSE, image, require_docker, until

OBSERVABILITY = COMPOSE.parent / "deploy" / "observability"


@dataclass(frozen=True)
class Collector:
    """`telemetry_url` is where a process sends, `traces_url` where its traces are read."""

    telemetry_url: str
    traces_url: str
    container: DockerContainer

    def output(self) -> str:
        """What the collector has said."""
        return "".join(part.decode() for part in self.container.get_logs())


@contextmanager
def collector() -> Iterator[Collector]:
    """Ready when both answer."""
    require_docker()
    with Network() as network:
        jaeger = DockerContainer(image("jaeger")).with_network(network).with_network_aliases("jaeger").with_exposed_ports(16686)
        jaeger = jaeger.with_env("COLLECTOR_OTLP_ENABLED", "true")
        gateway = DockerContainer(image("otel_collector")).with_network(network).with_exposed_ports(4318, 13133)
        gateway = gateway.with_volume_mapping(str(OBSERVABILITY / "otel-collector.yaml"), "/etc/otelcol/config.yaml", "ro")
        with jaeger, gateway.with_command("--config=/etc/otelcol/config.yaml"):
            reads, sends, health = _address(jaeger, 16686), _address(gateway, 4318), _address(gateway, 13133)
            until(lambda: urlopen(f"http://{reads}/", timeout=2), "Jaeger")
            until(lambda: urlopen(f"http://{health}/", timeout=2), "the collector")
            yield Collector(f"otlp+http://{sends}", f"jaeger+http://{reads}", gateway)


@pytest.fixture(scope="session", name="collector")
def _collector() -> Iterator[Collector]:
    with collector() as running:
        yield running


def _address(container: DockerContainer, port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"
