"""Composition root of the deployment service, and of the process that runs its replicas on a node."""

from collections.abc import Callable, Sequence
from typing import Any

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from lepton.data.v1.data_service_pb2_grpc import DataServiceStub
from lepton.deployment.v1.deployment_service_pb2_grpc import add_DeploymentServiceServicer_to_server
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceStub
from libs.events import EventLog
from libs.launcher import Launcher, SubprocessLauncher, open_launcher
from libs.lifecycle import Component, Lifecycle
from libs.service import Kit, command
from libs.storage import open_store
from services.deployment.batch_planner import BatchPlanner, PartSweep
from services.deployment.batch_worker import BatchWorker, Stores
from services.deployment.changes import Changes
from services.deployment.consumers import reactions
from services.deployment.gauges import endpoint_gauges
from services.deployment.handlers.admission import Peers
from services.deployment.node import Node
from services.deployment.reconciler import Reconciler
from services.deployment.resolution import Resolver
from services.deployment.servicer import DeploymentServicer
from services.deployment.settings import Settings

# Purpose in the artifact store of parts that are predicted, and not in a dataset yet.
PARTS = "predictions"


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
    peers = _peers(kit)
    node = Node(kit.database, peers.compute, own_launcher, open_store(settings.storage, "models"), Changes(), settings)
    return kit.worker([*parts, node, _batch_worker(kit, peers, own_launcher, node, settings)])


def build_embedded(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """Service and node in one process, for a platform on one machine: each wakes the other."""
    kit = Kit("deployment", "services.deployment", settings, event_log)
    changes, peers, models, launcher = Changes(), _peers(kit), open_store(settings.storage, "models"), SubprocessLauncher()
    node = Node(kit.database, peers.compute, launcher, models, changes, settings, alone=True)
    batches = _batch_worker(kit, peers, launcher, node, settings, alone=True)
    reconciler = Reconciler(kit.database, peers, changes, settings, here=node)
    # When it stops, nobody plans any more what would replace what the node ends.
    resolver = Resolver(kit.database, changes, reconciler.wake, node.answers)
    return _service(kit, peers, reconciler, resolver, [node, reconciler, batches], granted=batches.wake)


def _service(
    kit: Kit,
    peers: Peers,
    reconciler: Reconciler,
    resolver: Resolver,
    components: Sequence[Component],
    granted: Callable[[], Any] = lambda: None,
) -> Lifecycle:
    settings: Any = kit.settings
    planner = BatchPlanner(kit.database, peers, settings, granted)
    sweep = PartSweep(kit.database, open_store(settings.storage, PARTS), settings.part_orphan_seconds)
    servicer = DeploymentServicer(kit.database, peers, reconciler, resolver, planner)
    registrations = [(servicer, add_DeploymentServiceServicer_to_server)]
    return kit.service(
        registrations, reactions(reconciler.wake, planner.wake), [*components, planner, sweep, endpoint_gauges(kit.database)]
    )


def _batch_worker(kit: Kit, peers: Peers, launcher: Launcher, node: Node, settings: Settings, *, alone: bool = False) -> BatchWorker:
    """Started after the node, whose folder it works in."""
    stores = Stores(open_store(settings.storage, "datasets"), open_store(settings.storage, PARTS))
    return BatchWorker(kit.database, peers, launcher, stores, node.packages, node.batches, settings, alone=alone)


def _peers(kit: Kit) -> Peers:
    return Peers(
        accounts=kit.client(AccountsServiceStub, "accounts"),
        compute=kit.client(ComputeServiceStub, "compute"),
        training=kit.client(TrainingServiceStub, "training"),
        data=kit.client(DataServiceStub, "data"),
    )


if __name__ == "__main__":
    command("deployment", "services.deployment", Settings(), build, node=build_node)
