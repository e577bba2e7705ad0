"""The settings that every service has beside its own."""

from pydantic import SecretStr

from libs.db import DatabaseSettings
from libs.events import EventLogSettings
from libs.settings import Block, Settings
from libs.storage import StorageSettings


class IdentitySettings(Block):
    """The platform's Ed25519 key in PEM, by which services sign and verify who calls."""

    private_key: SecretStr = SecretStr("")


class PeerSettings(Block):
    """gRPC addresses of the other services: "unix:/path" or "host:port"."""

    accounts: str = ""
    data: str = ""
    compute: str = ""
    training: str = ""
    deployment: str = ""
    marketplace: str = ""


class ServiceSettings(Settings):
    """Base of each service's settings: where it listens and what it stands on."""

    listen: str = "127.0.0.1:0"
    database: DatabaseSettings = DatabaseSettings()
    events: EventLogSettings = EventLogSettings()
    storage: StorageSettings = StorageSettings()
    identity: IdentitySettings = IdentitySettings()
    peers: PeerSettings = PeerSettings()
    tasks_url: str = "memory://"
    telemetry_url: str = "none:"
    log_level: str = "info"
    # A file that is there and fresh while the process is ready, for health checks from outside; empty: none.
    alive_file: str = ""
