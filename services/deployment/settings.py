"""Settings of the deployment service."""

from pydantic_settings import SettingsConfigDict

from libs.service import ServiceSettings


class Settings(ServiceSettings):
    """From LEPTON_DEPLOYMENT_…"""

    model_config = SettingsConfigDict(env_prefix="LEPTON_DEPLOYMENT_")

    # Folders of replicas and cached model packages; on the file system of the artifact store, files need not be copied.
    work_dir: str = "/tmp/lepton-deployment"  # noqa: S108
    # Packages that no replica uses are dropped, the longest unused first, beyond so many bytes.
    cache_bytes: int = 10 * 2**30
    reconcile_seconds: float = 1.0
    # The instance that runs replicas loses them to another one when it is not heard of for so long.
    leader_lease_seconds: float = 15.0
    # Compute takes an allocation back that was not renewed for so long.
    allocation_lease_seconds: int = 30
    # From the start of a replica's process to its first answer.
    start_seconds: float = 60.0
    # Routers may go on asking a replica for so long after it is taken out.
    route_seconds: float = 1.5
    # What a replica has in hand may take so long once it is asked to end.
    grace_seconds: float = 10.0
    # A replica that does not answer its health check in three turns of so many seconds is replaced.
    probe_seconds: float = 10.0
