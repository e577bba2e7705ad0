"""A Kafka broker for tests, in a container that can be stopped and started again with what it holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from tests.backends import image, require_docker, until
from tests.platform import free_port

# As in compose.yaml, but for the listener: clients are outside, on a port that is known before the broker starts.
ENVIRONMENT = {
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_LISTENERS": "CLIENTS://:9092,CONTROLLER://:9093,INSIDE://:9094",
    "KAFKA_INTER_BROKER_LISTENER_NAME": "INSIDE",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_HEAP_OPTS": "-Xms256m -Xmx512m",
}


@dataclass(frozen=True)
class Broker:
    """`address` is "localhost:port", and stays the same when it is started again."""

    address: str
    container: Container

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def stop(self, *, kill: bool = False) -> None:
        """As an operator, or as a power cut of the process."""
        if kill:
            self.container.kill()
            self.container.wait()
        else:
            self.container.stop(timeout=30)

    def start(self) -> None:
        """Again, with what it held; returns once it is up."""
        self.container.start()
        self.wait()

    def wait(self) -> None:
        # From inside: at the port outside, Docker's own proxy answers before anything else does.
        knock = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9092"]
        until(lambda: self.container.exec_run(knock).exit_code == 0, "Kafka", timeout=120)


@contextmanager
def broker(
    *, protocol: str = "PLAINTEXT", environment: Mapping[str, str] | None = None, files: Path | None = None, port: int = 0
) -> Iterator[Broker]:
    """A single broker in KRaft mode with nothing in it; clients come by `protocol` of the listener CLIENTS, and `files` lie in /files."""
    require_docker()
    port = port or free_port()
    listeners = {
        "KAFKA_ADVERTISED_LISTENERS": f"CLIENTS://localhost:{port},INSIDE://localhost:9094",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": f"CLIENTS:{protocol},CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT",
    }
    server = DockerContainer(image("kafka")).with_bind_ports(9092, port)
    for name, value in {**ENVIRONMENT, **listeners, **(environment or {})}.items():
        server = server.with_env(name, value)
    if files:
        server = server.with_volume_mapping(str(files), "/files", "ro")
    with server:
        started = Broker(f"localhost:{port}", server.get_wrapped_container())
        started.wait()
        yield started


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """One broker for all tests that leave it as it is: each takes topics and groups of its own."""
    with broker() as started:
        yield started
