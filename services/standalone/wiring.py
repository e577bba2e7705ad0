"""The settings of every service on one machine: SQLite files, unix sockets and folders in one home."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from libs.db import DatabaseSettings
from libs.events import EventLogSettings
from libs.rpc import generate_key
from libs.service import IdentitySettings, PeerSettings
from libs.storage import StorageSettings
from services.standalone.home import Home, Running

SERVICES = ("accounts", "data", "compute", "training", "deployment", "marketplace")


@dataclass(frozen=True)
class Wiring:
    """Where everything is. `sockets` and `broker` are of this run, the rest of the home."""

    home: Home
    sockets: Path
    broker: str

    @classmethod
    def of_running(cls, path: str) -> tuple["Wiring", Running]:
        """Of the platform that runs in that home, for a process beside it; ends the process where none does."""
        home = Home(Path(path))
        running = home.running()
        if running is None:
            raise SystemExit(f"no platform runs in {home.path}")
        return cls(home, Path(running.sockets), running.broker), running

    @property
    def telemetry_url(self) -> str:
        return f"sqlite://{self.home.path / 'traces.db'}"

    @property
    def storage(self) -> StorageSettings:
        return StorageSettings(url=f"file://{self.home.artifacts}")

    @property
    def addresses(self) -> dict[str, str]:
        return {name: f"unix:{self.sockets}/{name}" for name in SERVICES}

    @property
    def private_key(self) -> SecretStr:
        return SecretStr(self.home.kept("identity.pem", lambda: generate_key()[0]))

    @property
    def control_socket(self) -> str:
        """Where the gateway's control plane listens."""
        return f"{self.sockets}/gateway"

    @property
    def of_gateway(self) -> dict[str, Any]:
        """What `GatewaySettings` takes, of both processes."""
        return {
            "peers": PeerSettings(**self.addresses),
            "identity": IdentitySettings(private_key=self.private_key),
            "storage": self.storage,
            "telemetry_url": self.telemetry_url,
        }

    def work_dir(self, name: str) -> str:
        """Where the service `name` puts what it works on."""
        return str(self.home.work / name)

    def of(self, name: str) -> dict[str, Any]:
        """What `ServiceSettings` of the service `name` takes."""
        return {
            "listen": self.addresses[name],
            "database": DatabaseSettings(url=self.home.database(name)),
            "events": EventLogSettings(url=f"sqlite://{self.home.events}"),
            "storage": self.storage,
            "identity": IdentitySettings(private_key=self.private_key),
            "peers": PeerSettings(**self.addresses),
            "tasks_url": self.broker,
            "telemetry_url": self.telemetry_url,
        }
