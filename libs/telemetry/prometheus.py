"""Metrics where Prometheus can fetch them, on a small port of its own. Loaded only where a setting names one."""

import threading
from socketserver import TCPServer
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector

# Who connects and says nothing does not keep Prometheus from reading for longer.
SILENCE_SECONDS = 5.0


class _Server(TCPServer):
    """Not http.server's: that one asks the DNS for a name that nobody needs, and may wait for it."""

    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone away."""


class MetricsServer:
    """`listen` is "host:port"; port 0 takes a free one, which `address` names. One request at a time, in a thread: scrapes are rare."""

    def __init__(self, listen: str) -> None:
        """Raises ValueError on another form, OSError in words where it cannot be listened on."""
        host, colon, port = listen.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"metrics_listen {listen!r}: must be host:port, as 0.0.0.0:9464, or empty")
        registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
        ProcessCollector(registry=registry)
        handler = type("_Handler", (MetricsHandler,), {"registry": registry, "timeout": SILENCE_SECONDS})
        try:
            self._server = _Server((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise OSError(f"metrics cannot be offered on {listen}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no longer. A scrape that hangs is left to its thread."""
        threading.Thread(target=self._server.shutdown, daemon=True).start()
        self._thread.join(1)
        self._server.server_close()
