"""Real servers for tests, in containers: the images of compose.yaml, or those that the environment names instead.

Where no Docker engine answers a test says so and is skipped; in CI that is a failure.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

COMPOSE = Path(__file__).parent.parent / "compose.yaml"
# Its own clean-up container is one image more; ours end with the fixtures.
testcontainers_config.ryuk_disabled = True


def image(name: str) -> str:
    """The image of a server, as compose.yaml has it: `${LEPTON_KAFKA_IMAGE:-apache/kafka:4.1.0}` is image("kafka")."""
    variable = f"LEPTON_{name.upper()}_IMAGE"
    found = re.search(r"\$\{" + variable + r":-([^}]+)\}", COMPOSE.read_text())
    assert found, f"compose.yaml names no {variable}"
    return os.environ.get(variable) or found[1]


@cache
def _why_not() -> str:
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no Docker here: {error}"
    return "" if done.returncode == 0 else f"no Docker engine answers: {done.stderr.strip()}"


def require_docker() -> None:
    """Skips the test, or fails it in CI, where no Docker engine answers."""
    if why := _why_not():
        if os.environ.get("CI"):
            pytest.fail(f"{why}; in CI this is no reason to skip")
        pytest.skip(why)


@contextmanager
def container(name: str, port: int, environment: dict[str, str], command: str | list[str] = "") -> Iterator[tuple[DockerContainer, str]]:
    """A started server and its "host:port" on this machine; it may not answer yet."""
    require_docker()
    server = DockerContainer(image(name)).with_exposed_ports(port)
    for key, value in environment.items():
        server = server.with_env(key, value)
    if command:
        server = server.with_command(command)
    with server:
        yield server, f"{server.get_container_host_ip()}:{server.get_exposed_port(port)}"


def until(check: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Waits for `check` to answer truthy; what it raises counts as no."""
    from tests.platform import eventually

    def tried() -> bool:
        try:
            return bool(check())
        except Exception:
            return False

    assert eventually(tried, timeout), f"{what} did not answer within {timeout:g} s"
