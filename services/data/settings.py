"""Settings of the data service and its workers."""

from libs.service import ServiceSettings
from libs.settings import Block, SettingsConfigDict
from services.data.engine.limits import MIB, Limits


class EngineSettings(Block):
    """What one job of the engine may take; the other bounds are those of `Limits`."""

    memory_mib: int = 1024
    address_space_mib: int = 6144
    cpu_seconds: int = 900
    wall_seconds: float = 900.0
    threads: int = 2
    max_expanded_mib: int = 8192
    max_columns: int = 2000

    def limits(self) -> Limits:
        return Limits(
            memory_bytes=self.memory_mib * MIB,
            address_space_bytes=self.address_space_mib * MIB,
            cpu_seconds=self.cpu_seconds,
            wall_seconds=self.wall_seconds,
            threads=self.threads,
            max_expanded_bytes=self.max_expanded_mib * MIB,
            max_columns=self.max_columns,
        )


class Settings(ServiceSettings):
    """From LEPTON_DATA_…"""

    model_config = SettingsConfigDict(env_prefix="LEPTON_DATA_")

    # Where jobs have their folders; on the file system of the artifact store, files need not be copied.
    work_dir: str = "/tmp/lepton-data"  # noqa: S108
    engine: EngineSettings = EngineSettings()
    # Versions that one worker makes at once, and checks and previews that the service runs at once.
    jobs_at_once: int = 2
    # Without a renewal for so long a version's worker counts as dead.
    lease_seconds: float = 10.0
    reconcile_seconds: float = 1.0
    # Objects that a row has ceased to name are kept for so long: the same bytes may be on their way into another row.
    discard_seconds: float = 600.0
    # The same for objects that no row ever named, such as an upload whose caller went away.
    orphan_seconds: float = 3600.0
