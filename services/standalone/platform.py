"""`lepton up`: every service in one process; beside it the gateway, a task worker and a broker."""

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from pydantic import SecretStr

from libs import telemetry
from libs.events import open_event_log
from libs.launcher import Keeper, Launch, SubprocessLauncher
from libs.lifecycle import Component, Lifecycle
from libs.tasks.valkey import ValkeyBroker
from libs.telemetry import InService
from services.accounts import main as accounts
from services.accounts.settings import Settings as AccountsSettings
from services.compute import main as compute
from services.compute.settings import Settings as ComputeSettings
from services.data import main as data
from services.data.settings import Settings as DataSettings
from services.deployment import main as deployment
from services.deployment.settings import Settings as DeploymentSettings
from services.gateway.main import ControlPlane
from services.gateway.settings import GatewaySettings
from services.marketplace import main as marketplace
from services.marketplace.settings import Settings as MarketplaceSettings
from services.standalone.home import Home, HomeError, Running
from services.standalone.wiring import Wiring
from services.training import main as training
from services.training.settings import Settings as TrainingSettings

# What the processes beside this one need of its environment, and what begins as the settings of each.
PASSED_ON = ("LEPTON_HOME", "HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS")
SETTINGS = {"gateway": ("LEPTON_PLATFORM_", "LEPTON_GATEWAY_"), "worker": ("LEPTON_PLATFORM_", "LEPTON_DATA_", "LEPTON_TRAINING_")}
# Where one process listens no other can.
_OWN = ("LEPTON_PLATFORM_METRICS_LISTEN", "LEPTON_GATEWAY_METRICS_LISTEN")
# The gateway imports less than the rest, and starts with it.
LISTENS_SECONDS = 30.0


@dataclass(frozen=True)
class Up:
    """How to start."""

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8081
    api_key: str = ""
    log_level: str = "info"


def serve(home: Home, up: Up, on_ready: Callable[[dict[str, str]], None]) -> None:
    """Runs the platform until SIGTERM or SIGINT; `on_ready({"url", "grpc", "api_key"})` once it answers, the key empty when none was made.

    Raises HomeError when the home or the address cannot be used.
    """
    # The home is this user's alone; so is each file of it, should the home be copied or opened.
    os.umask(0o077)
    home.prepare()
    try:
        check_address(up.host, up.port, "--port 8090")
        check_address(up.host, up.grpc_port, "--grpc-port 8091")
        uvloop.run(_serve(home, up, on_ready))
    finally:
        home.release()


def check_address(host: str, port: int, instead: str) -> None:
    """Raises HomeError, with the option that chooses another one, when nothing can listen there."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        words = f"{host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}"
        raise HomeError(words, f"choose another port: lepton up {instead}") from error


async def _serve(home: Home, up: Up, on_ready: Callable[[dict[str, str]], None]) -> None:
    sockets = home.sockets()
    launcher = SubprocessLauncher()
    broker = ValkeyBroker(launcher, home.logs / "broker.log")
    wiring = Wiring(home, sockets, broker.url)
    _tell(wiring.telemetry_url, up.log_level)
    url, grpc = f"http://{up.host}:{up.port}", f"{up.host}:{up.grpc_port}"
    home.announce(Running(os.getpid(), psutil.Process().create_time(), url, str(sockets), broker.url, grpc))
    first_key = "" if up.api_key else home.first_key()
    beside = [_beside(name, launcher, home, up.log_level) for name in ("worker", "gateway")]
    parts: list[Component] = [broker, *beside, *services(wiring, up.api_key or first_key)]

    async def ready() -> None:
        await _answers(up.host, up.port)
        on_ready({"url": url, "grpc": grpc, "api_key": first_key})
        home.forget_first_key()

    try:
        await Lifecycle([*parts, _Then(ready)], grace_seconds=15).run()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        telemetry.shutdown()


def _tell(url: str, log_level: str) -> None:
    told = GatewaySettings()
    try:
        telemetry.setup("platform", url=url, level=log_level, metrics_listen=told.metrics_listen, sample=told.telemetry_sample)
    except (OSError, ValueError) as error:
        raise HomeError(str(error), "see LEPTON_PLATFORM_METRICS_LISTEN and LEPTON_PLATFORM_TELEMETRY_SAMPLE") from error


def services(wiring: Wiring, key: str) -> list[Component]:
    """Every service, the gateway's control plane last: what it can reach is there when it begins to answer."""
    log = open_event_log(DataSettings(**wiring.of("data")).events)
    compute_settings = ComputeSettings(**wiring.of("compute"))
    account_settings = AccountsSettings(**wiring.of("accounts"), bootstrap_key=SecretStr(key) if key else None)

    def with_folder(name: str) -> dict[str, Any]:
        return {**wiring.of(name), "work_dir": wiring.work_dir(name)}

    return [
        log,
        InService("accounts", accounts.build(account_settings, log)),
        InService("compute", compute.build(compute_settings, log)),
        InService("compute", compute.build_agent(compute_settings)),
        InService("data", data.build(DataSettings(**with_folder("data")), log)),
        InService("training", training.build(TrainingSettings(**with_folder("training")), log)),
        InService("deployment", deployment.build_embedded(DeploymentSettings(**with_folder("deployment")), log)),
        InService("marketplace", marketplace.build(MarketplaceSettings(**wiring.of("marketplace")), log)),
        InService("gateway", ControlPlane(GatewaySettings(**wiring.of_gateway, socket=wiring.control_socket))),
    ]


def environment_of(name: str, ours: Mapping[str, str], log_level: str) -> dict[str, str]:
    """What the process beside this one is told of `ours`."""
    told = {each: value for each, value in ours.items() if each in PASSED_ON or (each.startswith(SETTINGS[name]) and each not in _OWN)}
    return {**told, "LEPTON_PLATFORM_LOG_LEVEL": log_level}


def _beside(name: str, launcher: SubprocessLauncher, home: Home, log_level: str) -> Keeper:
    """A process of its own, which finds the platform by its home."""
    environment = environment_of(name, os.environ, log_level)
    log = home.logs / f"{name}.log"
    argv = [sys.executable, "-m", f"services.standalone.{name}", str(home.path)]
    return Keeper(launcher, Launch(name, argv, environment, cwd=Path.cwd(), stdout=log, stderr=log), grace_seconds=8)


async def _answers(host: str, port: int) -> None:
    """Returns once somebody listens there."""
    give_up = asyncio.get_running_loop().time() + LISTENS_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            if asyncio.get_running_loop().time() > give_up:
                words = f"nothing listens at {host}:{port} after {LISTENS_SECONDS:g} s"
                raise HomeError(words, "see logs/gateway.log in LEPTON_HOME") from error
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


class _Then:
    """Calls back once all before it have started."""

    def __init__(self, call: Callable[[], Awaitable[None]]) -> None:
        self._call = call

    async def start(self) -> None:
        await self._call()

    async def stop(self) -> None:
        return None
