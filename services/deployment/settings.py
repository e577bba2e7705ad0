"""Settings of the deployment service."""

import re
import socket
from ipaddress import ip_address
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from libs.launcher import LauncherSettings
from libs.service import ServiceSettings
from services.deployment.domain.batch import PART_ROWS

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class Settings(ServiceSettings):
    """From LEPTON_DEPLOYMENT_…"""

    model_config = SettingsConfigDict(env_prefix="LEPTON_DEPLOYMENT_")

    # Folders of replicas and cached model packages, of one process alone. On the file system of the artifact store, files need not be
    # copied.
    work_dir: str = "/tmp/lepton-deployment"  # noqa: S108
    # Packages that no replica uses are dropped, the longest unused first, beyond so many bytes.
    cache_bytes: int = 10 * 2**30
    reconcile_seconds: float = 1.0
    # The instance that plans is followed by another one when it is not heard of for so long.
    leader_lease_seconds: float = 15.0
    # Node whose replicas the node process runs; empty: of every node.
    node: str = ""
    # Where replicas run: on this machine, or in the pods of a cluster.
    launcher: LauncherSettings = LauncherSettings()
    # How often the node process looks for what it has to do.
    poll_seconds: float = 0.25
    # A node process that is not heard of for so long has lost its replicas.
    owner_lease_seconds: float = 10.0
    # Address that replicas listen on; 0.0.0.0 or :: are all of the machine's.
    replica_host: str = "127.0.0.1"
    # 0: any that is free. One for all is for replicas in pods, where each has an address of its own.
    replica_port: int = Field(default=0, ge=0, le=65535)
    # Name or address by which routers reach them; by default `replica_host`, and the machine's name where that is all addresses.
    advertise_host: str = ""
    # Compute takes an allocation back that was not renewed for so long.
    allocation_lease_seconds: int = 30
    # From the start of a replica's process to its first answer.
    start_seconds: float = 60.0
    # Routers may go on asking a replica for so long after it is taken out.
    route_seconds: float = 1.5
    # What a replica has in hand may take so long once it is asked to end.
    grace_seconds: float = 10.0
    # What one process of a batch prediction may take, and the rows that one that dies costs at most, of all but the largest datasets.
    batch_seconds: float = Field(default=86400.0, gt=0)
    batch_part_rows: int = Field(default=PART_ROWS, ge=1)
    # Parts that no row names are kept for so long: they may be on their way into one.
    part_orphan_seconds: float = 3600.0
    # A replica that does not answer its health check in three turns of so many seconds is replaced.
    probe_seconds: float = 5.0

    @model_validator(mode="after")
    def _require_hosts(self) -> Self:
        for name, host in (("REPLICA_HOST", self.replica_host), ("ADVERTISE_HOST", self.advertise_host or self.replica_host)):
            if not _NAME.fullmatch(host) and not _is_address(host):
                raise ValueError(f"{name} '{host}' is neither a host's name nor an address; a port or http:// does not belong into it")
        if _is_every_address(self.advertise_host):
            raise ValueError(f"ADVERTISE_HOST '{self.advertise_host}' is no address that anybody can reach; name this machine")
        return self

    @property
    def advertised_host(self) -> str:
        """What stands in a replica's URL."""
        return self.advertise_host or (socket.gethostname() if _is_every_address(self.replica_host) else self.replica_host)

    @property
    def probed_host(self) -> str:
        """Where this process itself reaches a replica."""
        if not _is_every_address(self.replica_host):
            return self.replica_host
        return "::1" if ":" in self.replica_host else "127.0.0.1"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_every_address(host: str) -> bool:
    return _is_address(host) and ip_address(host).is_unspecified
