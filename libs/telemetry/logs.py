"""Logs as lines on stderr: one JSON object each, or for people. stdlib's logging goes the same way.

An event is a constant name and keys; trace, service and workspace are added from what is around it, and secrets are hidden.
"""

import logging
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

from libs.telemetry.naming import current_service, current_workspace
from libs.telemetry.redaction import redacted
from libs.telemetry.tracing import current_trace_id

# Libraries that tell every step they take.
QUIET = ("aiosqlite", "alembic", "amqp", "asyncio", "celery", "grpc", "httpcore", "httpx", "kombu", "sqlalchemy", "uvicorn")
Event = MutableMapping[str, Any]


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


def _add_surroundings(_logger: Any, _method: str, event: Event) -> Event:
    event.setdefault("service", current_service())
    if trace_id := current_trace_id():
        event.setdefault("trace_id", trace_id)
    if workspace := current_workspace():
        event.setdefault("workspace", workspace)
    return event


def _redact(_logger: Any, _method: str, event: Event) -> Event:
    return dict(redacted(dict(event)))


def _render_json(_logger: Any, _method: str, event: Event) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


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
