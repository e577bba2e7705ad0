"""Composition root of the data service and of its worker."""

from pathlib import Path

from lepton.accounts.v1.accounts_service_pb2_grpc import AccountsServiceStub
from lepton.data.v1.data_service_pb2_grpc import add_DataServiceServicer_to_server
from libs.events import EventLog
from libs.lifecycle import Lifecycle
from libs.service import Kit, command
from libs.storage import open_store
from libs.tasks import TaskQueue, Worker
from services.data.handlers.making import Bench
from services.data.handlers.versions import Key
from services.data.maker import Maker
from services.data.reconciler import Reconciler, Sweep
from services.data.servicer import DataServicer
from services.data.settings import Settings
from services.data.tasks import open_queue, register, send_make_version

PURPOSE = "datasets"


def build(settings: Settings, event_log: EventLog | None = None) -> Lifecycle:
    """The service: API, reconciler, sweep."""
    kit = Kit("data", "services.data", settings, event_log)
    store, queue = open_store(settings.storage, PURPOSE), open_queue(settings.tasks_url)
    accounts = kit.client(AccountsServiceStub, "accounts")
    bench = Bench(Path(settings.work_dir), store, settings.engine.limits(), settings.jobs_at_once)

    def hint(key: Key) -> None:
        send_make_version(queue, key.workspace, key.dataset, key.number)

    reconciler = Reconciler(kit.database, accounts, hint, interval=settings.reconcile_seconds)
    sweep = Sweep(kit.database, store, discard_seconds=settings.discard_seconds, orphan_seconds=settings.orphan_seconds)
    servicer = DataServicer(kit.database, store, accounts, bench, hint)
    return kit.service([(servicer, add_DataServiceServicer_to_server)], components=[queue, bench, reconciler, sweep])


def build_worker(settings: Settings, event_log: EventLog | None = None, queue: TaskQueue | None = None) -> Lifecycle:
    """The worker, in a process of its own: makes versions. `queue` is given where several workers share one process and broker loop."""
    kit = Kit("data", "services.data", settings, event_log)
    own_queue = queue or open_queue(settings.tasks_url)
    maker = Maker(
        kit.database,
        open_store(settings.storage, PURPOSE),
        Path(settings.work_dir),
        settings.engine.limits(),
        at_once=settings.jobs_at_once,
        lease_seconds=settings.lease_seconds,
    )
    register(own_queue, maker.wake)
    return kit.worker([maker] if queue else [own_queue, maker, Worker([own_queue])])


if __name__ == "__main__":
    command("data", "services.data", Settings(), build, worker=build_worker)
