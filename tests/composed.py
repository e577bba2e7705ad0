"""The platform of compose.yaml for tests: images built, everything up, looked at and broken by `docker compose`, and taken down again."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tests.backends import require_docker
from tests.platform import Reachable, free_port

ROOT = Path(__file__).parent.parent
SERVICES = ("gateway", "control", "accounts", "data", "data-worker", "compute", "training", "deployment", "marketplace", "worker")
BACKENDS = ("postgres", "kafka", "minio", "redis")


@dataclass
class Composed(Reachable):
    """One project of `docker compose`. What tests ask of `Platform` it answers too."""

    folder: Path
    name: str
    port: int
    profiles: str = "core,observability"
    overrides: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    # Of a workspace that a test has made for itself; empty: of the first one.
    own_key: str = ""
    store_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)

    @property
    def env_file(self) -> Path:
        return self.folder / ".env"

    @property
    def secrets(self) -> dict[str, str]:
        """What `make env` wrote, one line each."""
        lines = (line.partition("=") for line in self.env_file.read_text().splitlines())
        return {name: value for name, _, value in lines if name.startswith("LEPTON_")}

    @property
    def key(self) -> str:
        return self.own_key or self.secrets["LEPTON_API_KEY"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def env(self) -> dict[str, str]:
        return {"LEPTON_URL": self.url, "LEPTON_API_KEY": self.key}

    def compose(self, *words: str, timeout: float = 600, check: bool = True) -> str:
        """What `docker compose WORDS` prints; raises AssertionError with its words when it fails."""
        argv = ["docker", "compose", "--project-name", self.name, "--env-file", str(self.env_file), *words]
        # Of the environment only what names images and finds the engine: secrets come from the file.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_") or name.endswith("_IMAGE")}
        environment |= {
            "COMPOSE_PROFILES": self.profiles,
            "LEPTON_LISTEN": f"127.0.0.1:{self.port}",
            "LEPTON_GRPC_LISTEN": self.grpc,
            "LEPTON_MINIO_LISTEN": f"127.0.0.1:{self.store_port}",
            "LEPTON_STORAGE_PUBLIC_URL": f"http://127.0.0.1:{self.store_port}",
            "LEPTON_JAEGER_LISTEN": "127.0.0.1:0",
            "LEPTON_PROMETHEUS_LISTEN": "127.0.0.1:0",
            **self.overrides,
        }
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0 or not check, f"docker compose {' '.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def up(self, *words: str) -> "Composed":
        started = time.monotonic()
        try:
            self.compose("up", "--wait", "--wait-timeout", "240", "--quiet-pull", *words)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        self.seconds = time.monotonic() - started
        return self

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "20", check=False)

    def containers(self, service: str) -> list[str]:
        """Ids of those that run."""
        return self.compose("ps", "--quiet", service).split()

    def processes(self) -> list[psutil.Process]:
        """Everything inside the containers, as this machine sees it."""
        found = []
        for container in self.compose("ps", "--quiet").split():
            done = subprocess.run(["docker", "top", container, "-o", "pid"], capture_output=True, text=True, timeout=30, check=False)
            for pid in done.stdout.split()[1:]:
                try:
                    found.append(psutil.Process(int(pid)))
                except psutil.Error:
                    continue
        return found

    def workspace(self, name: str) -> "Composed":
        """The same platform, in a new workspace on the largest plan."""
        with self.http() as http:
            made = http.post("/v1/workspaces", json={"name": name, "plan": "pro"})
            assert made.status_code == 201, made.text
        return replace(self, own_key=made.json()["secret"])

    def log(self) -> str:
        """Who is how, and what was said last, for a failing test's message."""
        return (
            self.compose("ps", "--all", check=False) + self.compose("logs", "--no-color", "--tail", "15", *SERVICES, check=False)[-12000:]
        )


@contextmanager
def composed(folder: Path, name: str = "", profiles: str = "core,observability", **overrides: str) -> Iterator[Composed]:
    """A platform for the block, of images built from this tree; whatever happens nothing of it stays."""
    require_docker()
    platform = Composed(folder, name or f"lepton-test-{os.getpid()}", free_port(), profiles, overrides)
    subprocess.run([ROOT / "tools" / "env.sh", platform.env_file], check=True, timeout=60)
    try:
        platform.compose("build", timeout=1800)
        yield platform.up()
    finally:
        platform.down()
