"""Celery as this platform uses it: JSON only, late acknowledgement, no results, no remote control."""

from celery import Celery
from celery.worker import WorkController


class Controller(WorkController):
    """Celery's worker without its own event loop, which is one for all of a process."""

    def should_use_eventloop(self) -> bool:
        return False


def celery_app(service: str, url: str, queue: str) -> Celery:
    app = Celery(f"lepton.{service}", broker=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=queue,
        task_create_missing_queues=True,
        # Taken again when a worker is lost; the row's lease keeps it from running twice.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        broker_transport_options={
            "visibility_timeout": 3600,
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "socket_keepalive": True,
        },
    )
    return app
