"""The settings that every service has beside its own."""

from pydantic import Field

from libs.db import DatabaseSettings
from libs.events import EventLogSettings
from libs.process import ProcessSettings
from libs.rpc import IdentitySettings, PeerSettings, TlsSettings
from libs.storage import StorageSettings


class ServiceSettings(ProcessSettings):
    """Base of each service's settings: where it listens and what it stands on."""

    listen: str = "127.0.0.1:0"
    database: DatabaseSettings = DatabaseSettings()
    # Otherwise the command `migrate` does, and a start waits for it.
    migrate_on_start: bool = True
    events: EventLogSettings = EventLogSettings()
    storage: StorageSettings = StorageSettings()
    identity: IdentitySettings = IdentitySettings()
    peers: PeerSettings = PeerSettings()
    tls: TlsSettings = TlsSettings()
    # May hold a password.
    tasks_url: str = Field(default="memory://", repr=False)
