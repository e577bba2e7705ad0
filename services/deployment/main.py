"""Composition root of the deployment service."""

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from lepton.deployment.v1.deployment_service_pb2_grpc import add_DeploymentServiceServicer_to_server
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceStub
from libs.events import EventLog
from libs.launcher import Launcher, SubprocessLauncher
from libs.lifecycle import Lifecycle
from libs.service import Kit, run
from libs.storage import ArtifactStore, open_store
from services.deployment.changes import Changes
from services.deployment.consumers import reactions
from services.deployment.gauges import endpoint_gauges
from services.deployment.handlers.admission import Peers
from services.deployment.reconciler import Reconciler
from services.deployment.resolution import Resolver
from services.deployment.servicer import DeploymentServicer
from services.deployment.settings import Settings


def build(
    settings: Settings, event_log: EventLog | None = None, *, launcher: Launcher | None = None, models: ArtifactStore | None = None
) -> Lifecycle:
    """The service: API, consumer, and the reconciler that runs replicas. `launcher` and `models` are given by tests."""
    kit = Kit("deployment", "services.deployment", settings, event_log)
    peers = Peers(
        accounts=kit.client(AccountsServiceStub, "accounts"),
        compute=kit.client(ComputeServiceStub, "compute"),
        training=kit.client(TrainingServiceStub, "training"),
    )
    changes = Changes()
    store = models or open_store(settings.storage, "models")
    reconciler = Reconciler(kit.database, peers, launcher or SubprocessLauncher(), store, changes, settings)
    servicer = DeploymentServicer(kit.database, peers, reconciler, Resolver(kit.database, changes, reconciler.answers))
    registrations = [(servicer, add_DeploymentServiceServicer_to_server)]
    return kit.service(registrations, reactions(reconciler.wake), [reconciler, endpoint_gauges(kit.database)])


if __name__ == "__main__":
    run("deployment", Settings(), build)
