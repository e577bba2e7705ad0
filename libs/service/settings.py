"""The settings that every service has beside its own."""

from pydantic import Field

from libs.db import DatabaseSettings
from libs.events import EventLogSettings
from libs.rpc import IdentitySettings, PeerSettings, TlsSettings
from libs.settings import Settings
from libs.storage import StorageSettings


class ServiceSettings(Settings):
    """Base of each service's settings: where it listens and what it stands on."""

    listen: str = "127.0.0.1:0"
    database: DatabaseSettings = DatabaseSettings()
    events: EventLogSettings = EventLogSettings()
    storage: StorageSettings = StorageSettings()
    identity: IdentitySettings = IdentitySettings()
    peers: PeerSettings = PeerSettings()
    tls: TlsSettings = TlsSettings()
    # May hold a password.
    tasks_url: str = Field(default="memory://", repr=False)
    # Where traces, logs and metrics go: "none:", "sqlite:///path/traces.db" or "otlp+http://collector:4318".
    telemetry_url: str = "none:"
    # The share of the traces begun here that is kept.
    telemetry_sample: float = 1.0
    # Where Prometheus finds the metrics, as "0.0.0.0:9464"; empty: nowhere.
    metrics_listen: str = ""
    log_level: str = "info"
    # A file that is there and fresh while the process is ready, for health checks from outside; empty: none.
    alive_file: str = ""
    # Between the word to end and the end, for callers to find another replica.
    drain_seconds: float = 0.0
