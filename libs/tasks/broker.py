"""Celery as this platform uses it: JSON only, late acknowledgement, no results, no remote control."""

import re
import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import structlog
from celery import Celery
from celery.bootsteps import CLOSE
from celery.exceptions import WorkerShutdown
from celery.worker import WorkController
from celery.worker.consumer import Consumer

log = structlog.get_logger()

# 0 is taken first. Each is a list of its own in Redis.
PRIORITIES = (0, 3, 6, 9)
# More than any worker has threads.
MOST_CONNECTIONS = 256
# Between two tries to reach the broker.
AGAIN_SECONDS = 1.0


class Controller(WorkController):
    """Celery's worker without its own event loop, which is one for all of a process."""

    def should_use_eventloop(self) -> bool:
        return False

    def close(self) -> None:
        """Takes nothing new; `start` returns within some two seconds. From any thread."""
        if self.consumer is not None:
            self.consumer.blueprint.state = CLOSE


class PatientConsumer(Consumer):
    """Celery's consumer, which waits for its broker as long as it takes, says so once, and can be stopped meanwhile."""

    def perform_pending_operations(self) -> None:
        """Once a message, or every two seconds; and what nobody acknowledged comes again, which kombu sees to with an event loop only."""
        super().perform_pending_operations()
        restore = getattr(self.connection.transport.cycle, "maybe_restore_messages", None) if self.connection else None
        if restore:
            restore()

    def ensure_connected(self, conn: Any) -> Any:
        failed = False
        while True:
            try:
                conn.connect()
            except (*conn.connection_errors, *conn.channel_errors) as error:
                if not failed:
                    log.warning("task_broker_away", reason=redacted(repr(error), self.app.conf.broker_url))
                failed = True
            else:
                if failed:
                    log.info("task_broker_back")
                return conn
            time.sleep(AGAIN_SECONDS)
            if self.blueprint.state == CLOSE:
                raise WorkerShutdown(0)


def celery_app(service: str, url: str, queue: str, *, visibility_seconds: float = 3600.0) -> Celery:
    app = Celery(f"lepton.{service}", broker=_checked(url), set_as_current=False)
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
        task_send_sent_event=False,
        worker_enable_remote_control=False,
        # What is under way when the broker goes away ends as it would have: its lease is in a row.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_consumer=PatientConsumer,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        broker_transport_options={
            "visibility_timeout": visibility_seconds,
            # Looked for every so many messages or pauses.
            "unacked_restore_throttle": 10 if visibility_seconds > 60 else 1,
            "priority_steps": list(PRIORITIES),
            # Each thread of a worker acknowledges by itself: what cannot be acknowledged takes up its place for ever.
            "max_connections": MOST_CONNECTIONS,
            "queue_order_strategy": "round_robin",
            "socket_connect_timeout": 2,
            "socket_timeout": 10,
            "socket_keepalive": True,
        },
    )
    return app


def _checked(url: str) -> str:
    """kombu asks a TLS server for no certificate unless it is told to."""
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


def redacted(text: str, url: str) -> str:
    """`text`, such as an error of Celery's, without the password that `url` holds."""
    secret = urlsplit(url).password or ""
    for form in {secret, unquote(secret), quote(unquote(secret), safe="")} - {""}:
        text = text.replace(form, "***")
    return re.sub(r"://\S*@", "://***@", text)
