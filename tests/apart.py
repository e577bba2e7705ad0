"""A platform on one machine whose services are processes of their own, as in containers: each may be away while the others go on.

`python -m tests.apart HOME PART` is one of them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import uvloop

from libs import telemetry
from libs.events import open_event_log
from libs.launcher import SubprocessLauncher
from libs.lifecycle import Component, Lifecycle
from libs.tasks.valkey import ValkeyBroker
from libs.telemetry import InService
from services.deployment import main as deployment
from services.deployment.settings import Settings as DeploymentSettings
from services.standalone.home import Home, Running
from services.standalone.platform import services
from services.standalone.wiring import Wiring
from tests.platform import Platform, eventually, free_port

# In the order of their start. `others` is every service that has no process of its own, and the broker.
PARTS = ("others", "accounts", "deployment", "replicas", "worker", "gateway")
MODULES = {"worker": "services.standalone.worker", "gateway": "services.standalone.gateway"}


def main(path: str, part: str) -> None:
    """Runs the part until SIGTERM."""
    uvloop.run(_run(Home(Path(path)), part))


async def _run(home: Home, part: str) -> None:
    before: list[Component] = []
    if part == "others":
        broker = ValkeyBroker(SubprocessLauncher(), home.logs / "broker.log")
        before = [broker]
        port, grpc_port, sockets = (os.environ[name] for name in ("APART_PORT", "APART_GRPC_PORT", "APART_SOCKETS"))
        started = psutil.Process().create_time()
        home.announce(Running(os.getpid(), started, f"http://127.0.0.1:{port}", sockets, broker.url, f"127.0.0.1:{grpc_port}"))
    wiring, _ = Wiring.of_running(str(home.path))
    telemetry.setup(part, url=wiring.telemetry_url)
    await Lifecycle([*before, *_components(wiring, part)]).run()


def _components(wiring: Wiring, part: str) -> list[Component]:
    settings = DeploymentSettings(**wiring.of("deployment"), work_dir=wiring.work_dir("deployment"))
    if part in ("deployment", "replicas"):
        log, build = open_event_log(settings.events), deployment.build if part == "deployment" else deployment.build_node
        return [log, InService("deployment", build(settings, log))]
    log, *parts = services(wiring, os.environ["LEPTON_API_KEY"])
    apart = {each.name: each for each in parts if isinstance(each, InService) and each.name in ("accounts", "deployment")}
    return [log, apart[part]] if part in apart else [log, *(each for each in parts if each not in apart.values())]


class Apart(Platform):
    """Its parts can be taken away, and brought back."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, free_port())
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> "Apart":
        home = Home(self.home)
        home.prepare()
        home.release()  # no lock: its processes are this test's
        self._sockets = home.sockets()
        for part in PARTS:
            self.bring(part)
            if part == "others":
                assert eventually(home.running, timeout=30), self.log()
        assert eventually(self.answers, timeout=60), self.log()
        return self

    def answers(self) -> bool:
        """Whether each service can be asked."""
        try:
            with self.http() as http:
                return all(http.get(path).status_code == 200 for path in ("/readyz", "/v1/me", "/v1/endpoints"))
        except httpx.TransportError:
            return False

    def bring(self, part: str) -> None:
        """Starts it, at the address that it had."""
        ports = {"APART_PORT": str(self.port), "APART_GRPC_PORT": str(self.grpc_port), "APART_SOCKETS": str(self._sockets)}
        words = [MODULES[part], str(self.home)] if part in MODULES else ["tests.apart", str(self.home), part]
        with (self.home / "logs" / "platform.log").open("ab") as log:
            self._running[part] = subprocess.Popen(
                [sys.executable, "-m", *words], env={**os.environ, **self.env, **ports}, stdout=log, stderr=log
            )

    def take(self, part: str) -> None:
        """kill -9."""
        self._running[part].kill()
        self._running[part].wait()

    def processes(self) -> list[psutil.Process]:
        found = [psutil.Process(each.pid) for each in self._running.values() if each.poll() is None]
        return [*found, *(child for each in found for child in each.children(recursive=True))]

    def end(self) -> None:
        """All of it, and what it left in the system's folder for temporary files."""
        for part in reversed(self._running):
            self.take(part)
        shutil.rmtree(Home(self.home).sockets())  # a new one; those of a platform that was killed are removed with it


@contextmanager
def running_apart(home: Path) -> Iterator[Apart]:
    """For the block; whatever happens nothing of it stays."""
    platform = Apart(home)
    try:
        yield platform.up()
    finally:
        platform.end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
