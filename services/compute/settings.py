"""Settings of the compute service and of the agent that speaks for a node."""

from pydantic_settings import SettingsConfigDict

from libs.launcher import LauncherSettings
from libs.service import ServiceSettings


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="LEPTON_COMPUTE_")

    # A node that has not been heard of for so long is lost. Its agent registers every third of it.
    node_lease_seconds: float = 15.0
    # An allocation that has waited so long keeps a node free for itself: smaller ones no longer overtake it there.
    patience_seconds: float = 60.0
    # Name and pool under which this machine offers itself; an empty name is the host's. Only the agent reads them.
    node_name: str = ""
    node_pool: str = "default"
    # Where what the agent offers runs. With kubernetes: it speaks for the machines of that cluster in place of its own.
    launcher: LauncherSettings = LauncherSettings()
    # The cluster's file; without one it is known by the service account of the pod that the agent runs in.
    kubeconfig: str = ""
    # A machine's pool is the value of this label, else "default".
    pool_label: str = "lepton.dev/pool"
    # Keys of taints that runs and replicas tolerate. A machine with another NoSchedule or NoExecute taint gets nothing new.
    tolerated_taints: tuple[str, ...] = ("nvidia.com/gpu", "google.com/tpu")
