"""SQLite as a database of units: WAL, synced before a commit returns, writers one after another."""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.errors import AppError, Transient

_READ_ONLY = "lepton_read_only"
# Execution options of a session for queries.
READING = {_READ_ONLY: True}


def open_sqlite(url: URL, pool_size: int) -> AsyncEngine:
    """An engine whose transactions are SQLite's own: writers begin IMMEDIATE, so that none fails half-way for a lock."""
    options: dict[str, Any] = {}
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        options = {"pool_size": pool_size, "max_overflow": pool_size}
    engine = create_async_engine(url, **options)
    event.listen(engine.sync_engine, "connect", _connect)
    event.listen(engine.sync_engine, "begin", _begin)
    event.listen(engine.sync_engine, "handle_error", _refuse)
    return engine


def _connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000", "cache_size=-2000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Any) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _refuse(context: ExceptionContext) -> None:
    """Turns what SQLite says of a full disk or a lock into the platform's words."""
    error = context.original_exception
    if not isinstance(error, sqlite3.OperationalError):
        return
    words = str(error).lower()
    if "full" in words:
        raise AppError("the disk that holds the database is full; free some space and try again", code="storage_full") from error
    if "readonly" in words:
        raise AppError("the database file cannot be written to; check its owner and the disk", code="unavailable") from error
    raise Transient("the database cannot be reached; try again") from error
