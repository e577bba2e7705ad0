"""A Redis server for tests, in a container, with a password; it can be stopped and started again, and forgets everything then."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from docker.models.containers import Container
from testcontainers.core.container import DockerContainer

from tests.backends import image, require_docker, until
from tests.platform import free_port

# With what a URL has to quote.
PASSWORD = "only for/tests: ä@%40"


@dataclass(frozen=True)
class Redis:
    """`port` is that of this machine, and stays the same when it is started again."""

    port: int
    container: Container
    # What redis-cli inside has to be told.
    words: Sequence[str] = ()

    @property
    def url(self) -> str:
        return self.url_with(PASSWORD)

    def url_with(self, password: str, scheme: str = "redis") -> str:
        return f"{scheme}://:{quote(password, safe='')}@127.0.0.1:{self.port}/0"

    def stop(self, *, kill: bool = False) -> None:
        """As an operator, or as the kernel when memory is short."""
        if kill:
            self.container.kill()
            self.container.wait()
        else:
            self.container.stop(timeout=10)

    def start(self) -> None:
        """Again; returns once it answers."""
        self.container.start()
        self.wait()

    def wait(self) -> None:
        until(lambda: self.ask("PING") == "PONG", "Redis")

    def ask(self, *words: str) -> str:
        """What redis-cli says."""
        done = self.container.exec_run(["redis-cli", "--no-auth-warning", "-a", PASSWORD, *self.words, *words])
        return str(done.output.decode()).strip()


@contextmanager
def server(*options: str, files: Path | None = None, words: Sequence[str] = ()) -> Iterator[Redis]:
    """As in compose.yaml, plus `options`; `files` lie in /files."""
    require_docker()
    port = free_port()
    command = ["redis-server", "--requirepass", PASSWORD, "--save", "", "--appendonly", "no", *options]
    started = DockerContainer(image("redis")).with_bind_ports(6379, port).with_command(command)
    if files:
        started = started.with_volume_mapping(str(files), "/files", "ro")
    with started:
        redis = Redis(port, started.get_wrapped_container(), words)
        redis.wait()
        yield redis


@pytest.fixture
def redis() -> Iterator[Redis]:
    """One of the test's own, which it may stop."""
    with server() as started:
        yield started
