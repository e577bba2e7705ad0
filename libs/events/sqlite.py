"""Event log adapter for one machine: a table in a SQLite file, synced before a publish returns.

Several processes may publish to one file; each sees the others' events within 50 ms.
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from libs.errors import AppError, Transient
from libs.events.event import Event
from libs.events.log import Received, receive

SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
    position INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, data BLOB NOT NULL,
    time REAL NOT NULL);
CREATE INDEX IF NOT EXISTS log_by_topic ON log (topic, position);
CREATE TABLE IF NOT EXISTS committed (grp TEXT, topic TEXT, position INTEGER NOT NULL, PRIMARY KEY (grp, topic)) WITHOUT ROWID;
"""
WATCH_SECONDS = 0.05
SWEEP_SECONDS = 3600.0
Result = TypeVar("Result")


class SqliteEventLog:
    """One partition a topic, ordered by position over all topics. Events older than the retention are dropped."""

    def __init__(self, path: str, *, retention_seconds: float) -> None:
        self._path = path
        self._retention_seconds = retention_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="event-log")
        self._changed = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None
        self._connection: sqlite3.Connection | None = None
        self._subscribed = False

    async def start(self) -> None:
        await self._in_thread(self._open)
        self._watching = asyncio.create_task(self._watch(), name="event-log-watch")

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
        if self._connection:
            await self._in_thread(self._connection.close)
        self._thread.shutdown()

    async def publish(self, events: Sequence[Event]) -> None:
        await self._in_thread(self._append, events)
        await self._notify()

    def subscribe(self, group: str, topics: Sequence[str]) -> "_Subscription":
        self._subscribed = True
        return _Subscription(self, group, tuple(sorted(topics)))

    def _open(self) -> None:
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=15)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(SCHEMA)
        self._sweep()

    def _sweep(self) -> None:
        self._db.execute("DELETE FROM log WHERE time < ?", (time.time() - self._retention_seconds,))

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise Transient("the event log is not open")
        return self._connection

    def _append(self, events: Sequence[Event]) -> None:
        now = time.time()
        rows = [(e.topic, e.key, json.dumps(e.headers()), e.data, now) for e in events]
        with _transaction(self._db):
            self._db.executemany("INSERT INTO log (topic, key, headers, data, time) VALUES (?, ?, ?, ?, ?)", rows)

    async def _in_thread(self, call: Callable[..., Result], *args: object) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise AppError("the disk that holds the event log is full", code="storage_full") from error
            raise Transient(f"the event log cannot be used: {error}") from error

    async def _watch(self) -> None:
        """Notices what other processes publish; SQLite's own counter tells, without reading the table."""
        seen = None
        swept = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._subscribed:
                continue
            try:
                version = await self._in_thread(lambda: self._db.execute("PRAGMA data_version").fetchone()[0])
                if time.monotonic() - swept > SWEEP_SECONDS:
                    swept = time.monotonic()
                    await self._in_thread(self._sweep)
            except AppError:
                continue
            if version != seen:
                seen = version
                await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Subscription:
    def __init__(self, log: SqliteEventLog, group: str, topics: tuple[str, ...]) -> None:
        self._log, self._group, self._topics = log, group, topics
        self._next: dict[str, int] | None = None

    def _ahead(self, limit: int) -> list[Received]:
        if self._next is None:
            rows = self._log._db.execute("SELECT topic, position FROM committed WHERE grp = ?", (self._group,)).fetchall()
            self._next = dict.fromkeys(self._topics, 0) | {t: p for t, p in rows if t in self._topics}
        places = " OR ".join("(topic = ? AND position > ?)" for _ in self._topics)
        values = [value for topic in self._topics for value in (topic, self._next[topic])]
        rows = self._log._db.execute(
            f"SELECT position, topic, key, headers, data FROM log WHERE {places} ORDER BY position LIMIT ?",  # noqa: S608 (placeholders)
            (*values, limit),
        ).fetchall()
        for position, topic, *_ in rows:
            self._next[topic] = position
        return [receive(topic, key, json.loads(headers), data, 0, position) for position, topic, key, headers, data in rows]

    async def poll(self, limit: int, timeout: float) -> list[Received]:
        last = time.monotonic() + timeout
        async with self._log._changed:
            # It is woken for other topics too.
            while not (ahead := await self._log._in_thread(self._ahead, limit)):
                try:
                    async with asyncio.timeout(last - time.monotonic()):
                        await self._log._changed.wait()
                except TimeoutError:
                    return []
            return ahead

    async def commit(self, received: Sequence[Received]) -> None:
        last: dict[str, int] = {}
        for item in received:
            last[item.event.topic] = max(item.position, last.get(item.event.topic, 0))
        await self._log._in_thread(self._commit, last)

    def _commit(self, last: dict[str, int]) -> None:
        # Not synced: after a power cut some events come again, and inboxes know them.
        self._log._db.execute("PRAGMA synchronous=NORMAL")
        try:
            self._commit_unsynced(last)
        finally:
            self._log._db.execute("PRAGMA synchronous=FULL")

    def _commit_unsynced(self, last: dict[str, int]) -> None:
        with _transaction(self._log._db):
            self._log._db.executemany(
                "INSERT INTO committed VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET position = max(position, excluded.position)",
                [(self._group, topic, position) for topic, position in last.items()],
            )

    async def lag(self) -> int:
        return await self._log._in_thread(self._behind)

    def _behind(self) -> int:
        done = dict(self._log._db.execute("SELECT topic, position FROM committed WHERE grp = ?", (self._group,)).fetchall())
        count = "SELECT count(*) FROM log WHERE topic = ? AND position > ?"
        return sum(self._log._db.execute(count, (topic, done.get(topic, 0))).fetchone()[0] for topic in self._topics)

    async def close(self) -> None:
        return None


class _transaction:
    """BEGIN IMMEDIATE … COMMIT on a connection in autocommit mode; rolls back when the block raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
                return
            except sqlite3.OperationalError:
                self._connection.execute("ROLLBACK")
                raise
        self._connection.execute("ROLLBACK")
