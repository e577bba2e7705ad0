"""Composition root of the training service and of its worker."""

from pathlib import Path

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceStub
from lepton.data.v1.data_service_pb2_grpc import DataServiceStub
from lepton.deployment.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from lepton.training.v1.training_service_pb2_grpc import add_TrainingServiceServicer_to_server
from libs import telemetry
from libs.events import EventLog
from libs.launcher import Launcher, open_launcher
from libs.lifecycle import Component, Lifecycle
from libs.modelkit import image
from libs.service import Kit, command
from libs.storage import open_store
from libs.tasks import TaskQueue, Worker
from services.training.consumers import consumers
from services.training.gauges import job_gauges
from services.training.handlers.admission import Peers
from services.training.pulse import Pulse
from services.training.reconciler import Reconciler, Sweep
from services.training.servicer import TrainingServicer
from services.training.settings import Settings
from services.training.supervisor import Supervisor, Tools
from services.training.supervisor.environment import engine_command
from services.training.supervisor.tools import Stores
from services.training.tasks import open_queue, register, send_run_attempt


def build(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """The service: API, consumer, reconciler, sweep."""
    kit = Kit("training", "services.training", settings, event_log)
    peers, queue = _peers(kit), open_queue(settings.tasks_url)

    def hint(workspace: str, job_id: str, node: str) -> None:
        send_run_attempt(queue, workspace, job_id, node if settings.queue_per_node else "")

    reconciler = Reconciler(kit.database, peers, hint, settings)
    pulse = Pulse(kit.database)
    stores = {purpose: open_store(settings.storage, purpose) for purpose in ("models", "checkpoints")}
    sweep = Sweep(kit.database, stores, settings.orphan_seconds)
    found = image.packages(Path(settings.model_image_lock) if settings.model_image_lock else None)
    servicer = TrainingServicer(kit.database, peers, reconciler, pulse, stores["models"], found)
    components: list[Component] = [queue, reconciler, pulse, sweep, job_gauges(kit.database)]
    return kit.service([(servicer, add_TrainingServiceServicer_to_server)], consumers(reconciler.wake), components)


def build_worker(
    settings: Settings, event_log: EventLog | None = None, queue: TaskQueue | None = None, launcher: Launcher | None = None
) -> Lifecycle:
    """The worker, in a process of its own: runs attempts. `queue` and `launcher` are given where several workers share one process."""
    own_launcher, parts = (launcher, ()) if launcher else open_launcher(settings.launcher)
    kit = Kit("training", "services.training", settings, event_log)
    own_queue = queue or open_queue(settings.tasks_url, settings.node)
    tools = Tools(
        database=kit.database,
        peers=_peers(kit),
        stores=Stores(*(open_store(settings.storage, purpose) for purpose in ("datasets", "models", "checkpoints"))),
        launcher=own_launcher,
        settings=settings,
        record_span=telemetry.record_span,
        command=engine_command,
    )
    supervisor = Supervisor(tools)
    register(own_queue, supervisor.take)
    return kit.worker([*parts, supervisor] if queue else [own_queue, *parts, supervisor, Worker([own_queue])])


def _peers(kit: Kit) -> Peers:
    return Peers(
        data=kit.client(DataServiceStub, "data"),
        compute=kit.client(ComputeServiceStub, "compute"),
        accounts=kit.client(AccountsServiceStub, "accounts"),
        deployment=kit.client(DeploymentServiceStub, "deployment"),
    )


if __name__ == "__main__":
    command("training", "services.training", Settings(), build, worker=build_worker)
