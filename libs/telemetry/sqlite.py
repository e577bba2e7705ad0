"""Traces in a SQLite file that any number of processes write: the adapter for one machine."""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

from libs.telemetry.naming import SERVICE
from libs.telemetry.redaction import redacted
from libs.telemetry.store import READ_SPANS, Span

SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    position INTEGER PRIMARY KEY AUTOINCREMENT, trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL,
    name TEXT NOT NULL, service TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, status TEXT NOT NULL,
    attributes TEXT NOT NULL, UNIQUE (trace_id, span_id));
"""
INSERT = """
INSERT OR IGNORE INTO spans (trace_id, span_id, parent_id, name, service, start_ns, end_ns, status, attributes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT = """
SELECT trace_id, span_id, parent_id, name, service, start_ns, end_ns, status, attributes FROM spans WHERE trace_id = ?
ORDER BY start_ns, position LIMIT ?
"""
KEEP_SPANS = 200_000
KEEP_SECONDS = 7 * 86400.0
SWEEP_SECONDS = 60.0
SWEEP_SPANS = 5000


class SqliteSink:
    """Writes spans; see Sink. Drops the oldest beyond `keep_spans` and `keep_seconds`, a bounded number at a time."""

    def __init__(self, path: Path, *, keep_spans: int = KEEP_SPANS, keep_seconds: float = KEEP_SECONDS) -> None:
        self._path = path
        self._keep_spans, self._keep_seconds = keep_spans, keep_seconds
        self._connection: sqlite3.Connection | None = None
        self._next_sweep = 0.0

    def write(self, spans: Sequence[ReadableSpan]) -> None:
        """In one transaction; a span that is there already is left as it is."""
        connection = self._open()
        with connection:
            connection.executemany(INSERT, [_row(span) for span in spans])
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            self.sweep()

    def sweep(self) -> None:
        """Drops what is too old or too much."""
        oldest = int((time.time() - self._keep_seconds) * 1e9)
        connection = self._open()
        with connection:
            connection.execute(
                """DELETE FROM spans WHERE position IN (SELECT position FROM spans ORDER BY position LIMIT ?)
                   AND (end_ns < ? OR position <= (SELECT max(position) FROM spans) - ?)""",
                (SWEEP_SPANS, oldest, self._keep_spans),
            )

    def close(self) -> None:
        """Closes the file."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA cache_size=-512")
            connection.executescript(SCHEMA)
            self._connection = connection
        return self._connection


class SqliteTraceStore:
    """Reads spans; see TraceStore."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def spans(self, trace_id: str) -> list[Span]:
        """See TraceStore; at most 10,000."""
        return await asyncio.to_thread(self._read, trace_id.lower())

    def _read(self, trace_id: str) -> list[Span]:
        try:
            connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        except sqlite3.OperationalError:
            return []  # No span was ever written.
        try:
            rows = connection.execute(SELECT, (trace_id, READ_SPANS)).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            connection.close()
        return [_span(*row) for row in rows]


def _span(
    trace_id: str, span_id: str, parent_id: str, name: str, service: str, start_ns: int, end_ns: int, status: str, attributes: str
) -> Span:
    return Span(trace_id, span_id, parent_id, name, service, start_ns, end_ns, status, orjson.loads(attributes))


def _row(span: ReadableSpan) -> tuple[str | int, ...]:
    attributes = redacted({key: list(value) if isinstance(value, tuple) else value for key, value in (span.attributes or {}).items()})
    service = str(attributes.pop(SERVICE, "") or span.resource.attributes.get(SERVICE, ""))
    context = span.get_span_context()
    if context is None or span.start_time is None:
        raise ValueError(f"span {span.name} never began")
    return (
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
        format_span_id(span.parent.span_id) if span.parent else "",
        span.name,
        service,
        span.start_time,
        span.end_time or span.start_time,
        (span.status.description or "error") if span.status.status_code is StatusCode.ERROR else "",
        orjson.dumps(attributes, default=str).decode(),
    )
