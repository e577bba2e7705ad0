"""Logs as lines on stderr: one JSON object each, or for people. stdlib's logging goes the same way.

An event is a constant name and keys; trace, service and workspace are added from what is around it, and secrets are hidden.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TextIO

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from libs.telemetry.background import Background, Sink
from libs.telemetry.naming import current_service, current_workspace
from libs.telemetry.redaction import redacted
from libs.telemetry.tracing import current_trace_id

# Libraries that tell every step they take.
QUIET = (
    *("aiokafka", "aiosqlite", "alembic", "amqp", "asyncio", "celery", "grpc", "httpcore", "httpcore2", "httpx", "httpx2", "kombu"),
    *("opentelemetry", "requests", "sqlalchemy", "urllib3", "uvicorn"),
)
# What carries lines to the collector: sent there too, each of its lines would make the next one.
_CARRIERS = ("opentelemetry", "requests", "urllib3")
QUEUE_LINES = 4096
# Of one value: a line waits in memory.
TEXT_LIMIT = 16_384
Event = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A log line on its way to a sink: its fields, without secrets, and the span around it."""

    time_ns: int
    event: Event
    span: SpanContext


_lines: Background[Line] = Background("logs", QUEUE_LINES)


def configure_logs(level: str, style: str, output: TextIO | None = None) -> None:
    """`level` "debug" … "critical"; `style` "json", "console", or "auto": console where a person looks. Raises ValueError on others."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or style not in ("auto", "console", "json"):
        raise ValueError(f"log level {level!r}, style {style!r}: one of debug, info, warning, error, critical; auto, console, json")
    stream = output or sys.stderr
    for_people = style == "console" or (style == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_surroundings,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact,
            _queue,
            structlog.dev.ConsoleRenderer(colors=stream.isatty()) if for_people else _render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_ToStructlog()]
    root.setLevel(number)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def send_logs(sink: Sink[Line] | None) -> None:
    """Lines go to `sink` too from now on; None: to stderr alone."""
    _lines.open(sink)


def end_logs() -> None:
    """Begins to stop sending."""
    _lines.end()


def stop_logs() -> None:
    """Sends what is queued; later lines go to stderr alone."""
    _lines.close()


def _add_surroundings(_logger: Any, _method: str, event: Event) -> Event:
    event.setdefault("service", current_service())
    if trace_id := current_trace_id():
        event.setdefault("trace_id", trace_id)
    if workspace := current_workspace():
        event.setdefault("workspace", workspace)
    return event


def _redact(_logger: Any, _method: str, event: Event) -> Event:
    return dict(redacted(dict(event)))


def _queue(_logger: Any, _method: str, event: Event) -> Event:
    if _lines.is_open and not str(event.get("logger", "")).startswith(_CARRIERS):
        short = {name: value[:TEXT_LIMIT] if isinstance(value, str) else value for name, value in event.items()}
        _lines.put(Line(time.time_ns(), short, trace.get_current_span().get_span_context()))
    return event


def _render_json(_logger: Any, _method: str, event: Event) -> str:
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # Half a character, or a number past 64 bits: a line that can be written is better than an error where it was logged.
        return json.dumps({str(name): value for name, value in event.items()}, default=repr, skipkeys=True)


class _Lines:
    """Writes lines whole; that nobody reads them, or the disk is full, does not concern who logs."""

    _writing = threading.Lock()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            with self._writing:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _ToStructlog(logging.Handler):
    """Hands stdlib's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        log: Callable[..., Any] = structlog.get_logger().log
        extra = {"exc_info": record.exc_info} if record.exc_info else {}
        try:
            log(record.levelno, record.getMessage(), logger=record.name, **extra)
        except Exception:
            self.handleError(record)
