"""Which launcher a URL means."""

import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from libs.launcher.launcher import Launcher
from libs.launcher.local import SubprocessLauncher
from libs.lifecycle import Component
from libs.settings import Block

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
GIB = 1 << 30


class LauncherSettings(Block):
    """Where programs run; all but `url` is for `kubernetes:`."""

    # subprocess: on this machine; kubernetes: a pod each.
    url: str = "subprocess:"
    # Default: the namespace that this process is in.
    namespace: str = ""
    # What holds the programs, their Python as `python`, and the shell's means to run as user 10001.
    image: str = ""
    python: str = "python"
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secret: str = ""
    # Names this process durably: what an earlier one of the same name has left is ended. No two of one name may run at once.
    owner: str = "node"
    # Where that is the pod that this process is in, in the same namespace: Deployments go when the pod does, though nothing follows it.
    owner_uid: str = ""
    # Pods reach the exchange of files here; the host defaults to the address from which this process reaches the cluster.
    exchange_port: int = Field(default=8444, ge=0, le=65535)
    exchange_host: str = ""
    priority_class: str = ""
    gpu_resource: str = "nvidia.com/gpu"
    # Taints of nodes with accelerators, by their keys.
    gpu_taints: list[str] = ["nvidia.com/gpu"]
    # For a place on a node, and from then to the program's start: images are large.
    place_seconds: float = 120.0
    start_seconds: float = 900.0
    # What one launch may leave in its folder.
    file_bytes: int = 16 * GIB
    total_bytes: int = 64 * GIB
    files: int = 2000

    @property
    def in_cluster(self) -> bool:
        """Whether programs run in a cluster's pods."""
        return self.url == "kubernetes:"

    @model_validator(mode="after")
    def _require_what_pods_need(self) -> Self:
        if self.in_cluster and not self.image:
            raise ValueError("LAUNCHER__IMAGE is missing: pods need an image with the platform's worker code")
        if not _LABEL.fullmatch(self.owner):
            raise ValueError(f"LAUNCHER__OWNER '{self.owner}' is no name: up to 40 of a-z, 0-9 and -")
        return self


def open_launcher(settings: LauncherSettings) -> tuple[Launcher, Sequence[Component]]:
    """The adapter that the URL names, and what has to run while it is used."""
    match settings.url:
        case "subprocess:":
            return SubprocessLauncher(), ()
        case "kubernetes:":
            # Where it is needed only: the cluster's client takes 20 MB and some tenths of a second to import.
            from libs.launcher.kubernetes.launcher import open_kubernetes

            return open_kubernetes(settings)
        case _:
            raise ValueError(f"launcher URL {settings.url!r}: it must be subprocess: or kubernetes:")
