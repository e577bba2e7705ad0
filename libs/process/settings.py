"""The settings that every process has, whatever it does."""

from libs.settings import Settings


class ProcessSettings(Settings):
    """What a process says of itself, and how it ends."""

    # Where traces, logs and metrics go: "none:", "sqlite:///path/traces.db" or "otlp+http://collector:4318".
    telemetry_url: str = "none:"
    # The share of the traces begun here that is kept.
    telemetry_sample: float = 1.0
    # Where Prometheus finds the metrics, as "0.0.0.0:9464"; empty: nowhere.
    metrics_listen: str = ""
    log_level: str = "info"
    # A file that is there and fresh while the process is ready, for health checks from outside; empty: none.
    alive_file: str = ""
    # Between the word to end and the end, for callers to find another replica.
    drain_seconds: float = 0.0
