"""How the workers of one launch, a pod each, find one another and are kept from others. Knows no API server."""

from typing import Any

from libs.launcher.launcher import Launch
from libs.launcher.opening import LauncherSettings

OWNER, LAUNCH = "lepton.dev/owner", "lepton.dev/launch"
PORT = 29400
# For all to come, once the first is there; a cluster may have to pull an image.
COME_SECONDS = 900
_HOST = "kubernetes.io/hostname"


def variables(name: str, launch: Launch) -> dict[str, str]:
    """What torchrun reads; each worker's own number its wrapper adds. The first has a name in the cluster, by the Service."""
    if launch.workers == 1:
        return {}
    return {
        "PET_NNODES": str(launch.workers),
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_ENDPOINT": f"{name}-0.{name}:{PORT}",
        "PET_RDZV_CONF": f"timeout={COME_SECONDS}",
    }


def pod(name: str, launch: Launch) -> dict[str, Any]:
    """What stands in the pods: their names' domain, and as many on each node as the launch says."""
    if launch.workers == 1:
        return {}
    together: dict[str, Any] = {"subdomain": name}
    if launch.nodes:
        nodes = {"key": _HOST, "operator": "In", "values": list(launch.nodes)}
        required = {"nodeSelectorTerms": [{"matchExpressions": [nodes]}]}
        together["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
        evenly = {"maxSkew": 1, "topologyKey": _HOST, "whenUnsatisfiable": "DoNotSchedule"}
        together["topologySpreadConstraints"] = [evenly | {"labelSelector": {"matchLabels": {LAUNCH: name}}}]
    return together


def service(name: str, uid: str, settings: LauncherSettings) -> dict[str, Any]:
    """Gives each pod a name, from before it is ready. Owned by the Job."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LAUNCH: name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name, uid, settings), "spec": spec}


def policy(name: str, uid: str, settings: LauncherSettings) -> dict[str, Any]:
    """Beside what pods of runs may else: its own pods may speak with each other, and ask for each other's addresses."""
    own = {"podSelector": {"matchLabels": {LAUNCH: name}}}
    names = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    spec = {
        **own,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [own]}],
        "egress": [{"to": [own]}, {"to": [names], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": _metadata(name, uid, settings), "spec": spec}


def _metadata(name: str, uid: str, settings: LauncherSettings) -> dict[str, Any]:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return {"name": name, "labels": {OWNER: settings.owner, LAUNCH: name}, "ownerReferences": [owner]}
