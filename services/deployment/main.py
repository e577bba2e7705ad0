"""Composition root of the deployment service, and of the process that runs its replicas on a node."""

from collections.abc import Sequence

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from lepton.deployment.v1.deployment_service_pb2_grpc import add_DeploymentServiceServicer_to_server
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceStub
from libs.events import EventLog
from libs.launcher import Launcher, SubprocessLauncher, open_launcher
from libs.lifecycle import Component, Lifecycle
from libs.service import Kit, command
from libs.storage import open_store
from services.deployment.changes import Changes
from services.deployment.consumers import reactions
from services.deployment.gauges import endpoint_gauges
from services.deployment.handlers.admission import Peers
from services.deployment.node import Node
from services.deployment.reconciler import Reconciler
from services.deployment.resolution import Resolver
from services.deployment.servicer import DeploymentServicer
from services.deployment.settings import Settings


def build(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """The service: API, consumer, reconciler. Runs no replica: that is for nodes."""
    kit = Kit("deployment", "services.deployment", settings, event_log)
    changes, peers = Changes(), _peers(kit)
    reconciler = Reconciler(kit.database, peers, changes, settings)
    return _service(kit, peers, reconciler, Resolver(kit.database, changes, reconciler.wake), [reconciler])


def build_node(settings: Settings, event_log: EventLog | None = None, launcher: Launcher | None = None) -> Lifecycle:
    """What runs replicas on one node, in a process of its own. `launcher` is given where training's worker shares it."""
    own_launcher, parts = (launcher, ()) if launcher else open_launcher(settings.launcher)
    kit = Kit("deployment", "services.deployment", settings, event_log)
    compute = kit.client(ComputeServiceStub, "compute")
    node = Node(kit.database, compute, own_launcher, open_store(settings.storage, "models"), Changes(), settings)
    return kit.worker([*parts, node])


def build_embedded(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """Service and node in one process, for a platform on one machine: each wakes the other."""
    kit = Kit("deployment", "services.deployment", settings, event_log)
    changes, peers, models = Changes(), _peers(kit), open_store(settings.storage, "models")
    node = Node(kit.database, peers.compute, SubprocessLauncher(), models, changes, settings, alone=True)
    reconciler = Reconciler(kit.database, peers, changes, settings, here=node)
    # When it stops, nobody plans any more what would replace what the node ends.
    return _service(kit, peers, reconciler, Resolver(kit.database, changes, reconciler.wake, node.answers), [node, reconciler])


def _service(kit: Kit, peers: Peers, reconciler: Reconciler, resolver: Resolver, components: Sequence[Component]) -> Lifecycle:
    servicer = DeploymentServicer(kit.database, peers, reconciler, resolver)
    registrations = [(servicer, add_DeploymentServiceServicer_to_server)]
    return kit.service(registrations, reactions(reconciler.wake), [*components, endpoint_gauges(kit.database)])


def _peers(kit: Kit) -> Peers:
    return Peers(
        accounts=kit.client(AccountsServiceStub, "accounts"),
        compute=kit.client(ComputeServiceStub, "compute"),
        training=kit.client(TrainingServiceStub, "training"),
    )


if __name__ == "__main__":
    command("deployment", "services.deployment", Settings(), build, node=build_node)
