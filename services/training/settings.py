"""Settings of the training service and its workers."""

from libs.launcher import LauncherSettings
from libs.service import ServiceSettings
from libs.settings import SettingsConfigDict


class Settings(ServiceSettings):
    """From LEPTON_TRAINING_…"""

    model_config = SettingsConfigDict(env_prefix="LEPTON_TRAINING_")

    # Where workers keep the folders of runs; on the file system of the artifact store, files need not be copied.
    work_dir: str = "/tmp/lepton-training"  # noqa: S108
    # Node whose allocations this worker runs; empty: of every node.
    node: str = ""
    # Workers hear only of the jobs of their own `node`, through a queue of its own. For the service, where every worker has a `node`.
    queue_per_node: bool = False
    # Without a renewal for so long an attempt's worker counts as dead.
    lease_seconds: float = 10.0
    # Compute takes an allocation back that was not renewed for so long.
    allocation_lease_seconds: int = 30
    reconcile_seconds: float = 0.5
    # A process that says nothing for so long is ended; before its first step, while it loads, it has `startup_seconds`.
    hang_seconds: float = 60.0
    startup_seconds: float = 300.0
    # Between SIGTERM and SIGKILL; with it a cancel takes effect within 2 s.
    stop_grace_seconds: float = 1.0
    # Where runs run: on this machine, or in the pods of a cluster.
    launcher: LauncherSettings = LauncherSettings()
    max_log_lines: int = 10_000
    max_metric_points: int = 100_000
    # The lock of the image in which the code of models runs that are brought; empty: it runs in this environment.
    model_image_lock: str = ""
    # Objects that no row names are kept for so long: they may be on their way into one.
    orphan_seconds: float = 3600.0
