"""Engine, sessions and units for one service's database: SQLite (WAL, synced before a commit returns) or PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from libs.db.unit import RequestKey, Unit
from libs.errors import AppError, Transient
from libs.settings import Block

READ_ONLY = "lepton_read_only"


class DatabaseSettings(Block):
    """`url`: "sqlite+aiosqlite:////path/file.db" (in memory: "sqlite+aiosqlite://") or "postgresql+asyncpg://…"."""

    url: str = "sqlite+aiosqlite://"
    pool_size: int = 8


class Database:
    """One service's database. Units that write come one after another on SQLite; readers see the last commit and never wait."""

    def __init__(self, settings: DatabaseSettings) -> None:
        url = make_url(settings.url)
        self.url = settings.url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        in_memory = self.is_sqlite and not url.database
        if self.is_sqlite and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {} if in_memory else {"pool_size": settings.pool_size, "max_overflow": settings.pool_size}
        self.engine = create_async_engine(url, **options)
        self._read_engine = self.engine.execution_options(**{READ_ONLY: True})
        self._writing = asyncio.Lock()
        # One connection holds an in-memory database: readers must take turns with the writer.
        self._reading: asyncio.Lock | None = self._writing if in_memory else None
        self._on_emit: list[Callable[[], Any]] = []
        if self.is_sqlite:
            _prepare_sqlite(self.engine.sync_engine)

    async def start(self) -> None:
        """Connects once, so that a wrong URL is said at the start."""
        async with self.engine.connect():
            pass

    async def stop(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()

    def on_emit(self, call: Callable[[], Any]) -> None:
        """`call` (not a coroutine) is called after each commit that wrote to the outbox."""
        self._on_emit.append(call)

    @asynccontextmanager
    async def unit(self, request: RequestKey | None = None) -> AsyncIterator[Unit]:
        """A transaction that commits when the block ends and rolls back when it raises.

        With a `request` that has been answered before, raises Replay at once.
        """
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                await stack.enter_async_context(self._writing)
            with _errors():
                session = await stack.enter_async_context(AsyncSession(self.engine, expire_on_commit=False))
                try:
                    async with session.begin():
                        unit = Unit(session, request)
                        await unit.replay()
                        yield unit
                except AppError as error:
                    if request and not error.entry.retryable and error.code != "idempotency_key_reused":
                        await self._remember_refusal(session, request, error)
                    raise
        unit.committed()
        if unit.emitted:
            for call in self._on_emit:
                call()

    async def _remember_refusal(self, session: AsyncSession, request: RequestKey, error: AppError) -> None:
        try:
            async with session.begin():
                unit = Unit(session, request)
                await unit.replay()
                await unit.refuse(error)
        except AppError:
            return  # Remembered already.

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for queries only; it sees one state of the database."""
        async with AsyncExitStack() as stack:
            if self._reading:
                await stack.enter_async_context(self._reading)
            with _errors():
                yield await stack.enter_async_context(AsyncSession(self._read_engine, expire_on_commit=False))


class _errors:
    """Turns what the driver says of a full disk, a lock or a lost connection into the platform's words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, OperationalError):
            return
        words = str(error.orig).lower()
        if "full" in words:
            raise AppError("the disk that holds the database is full; free some space and try again", code="storage_full") from error
        if "readonly" in words:
            raise AppError("the database file cannot be written to; check its owner and the disk", code="unavailable") from error
        raise Transient("the database cannot be reached; try again") from error


def _prepare_sqlite(engine: Any) -> None:
    """Makes SQLAlchemy's transactions SQLite's own: writers begin IMMEDIATE, so that none fails half-way for a lock."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000", "cache_size=-2000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
