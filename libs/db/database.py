"""Engine, sessions and units for one service's database: SQLite or PostgreSQL. What they have of their own is in modules of theirs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import structlog
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from libs.db import sqlite
from libs.db.unit import RequestKey, Unit
from libs.errors import AppError, Transient
from libs.settings import Block

log = structlog.get_logger()


class DatabaseTlsSettings(Block):
    """PEM files: the authority that the server's certificate comes from, and the client's certificate and key where it asks for them."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class DatabaseSettings(Block):
    """`url`: "sqlite+aiosqlite:////path/file.db" (in memory: "sqlite+aiosqlite://") or "postgresql+asyncpg://role@host:5432/database"."""

    url: str = "sqlite+aiosqlite://"
    # Of PostgreSQL's role. No URL holds it.
    password: SecretStr = SecretStr("")
    tls: DatabaseTlsSettings = DatabaseTlsSettings()
    # As many again where that is not enough.
    pool_size: int = 8
    # For so long a start waits for a server that is not there yet.
    start_seconds: float = 60.0


class Database:
    """One service's database. Units come one after another, over all processes; readers see the last commit and never wait."""

    def __init__(self, settings: DatabaseSettings) -> None:
        url = make_url(settings.url)
        self.settings = settings
        self._url = url
        self.is_sqlite = url.drivername == "sqlite+aiosqlite"
        in_memory = self.is_sqlite and not url.database
        # A unit that waits for its turn holds no connection: the readers need them.
        self._writing = asyncio.Lock()
        # One connection holds an in-memory database: readers must take turns with the writer.
        self._reading: asyncio.Lock | None = self._writing if in_memory else None
        self._on_emit: list[Callable[[], Any]] = []
        if self.is_sqlite:
            self.engine = sqlite.open_sqlite(url, settings.pool_size)
            self._read_engine = self.engine.execution_options(**sqlite.READING)
            self._turn_seconds: float | None = None
            self._is_lost: Callable[[Exception], bool] = lambda _error: False
        elif url.drivername == "postgresql+asyncpg":
            # Where it is needed only: the driver takes a tenth of a second to import.
            from libs.db import postgres

            self.engine = postgres.open_postgres(url, settings.password, settings.tls, pool_size=settings.pool_size)
            self._read_engine = self.engine.execution_options(**postgres.READING)
            self._turn_seconds = postgres.LOCK_SECONDS
            self._is_lost = postgres.is_lost
        else:
            raise ValueError(f"database URL with {url.drivername}: must begin with sqlite+aiosqlite:// or postgresql+asyncpg://")

    async def start(self) -> None:
        """Connects once, so that a wrong URL is said at the start; a server that is not there yet is waited for."""
        end = time.monotonic() + self.settings.start_seconds
        while True:
            try:
                with self._reaching():
                    async with self._read_engine.connect():
                        return
            except Transient as error:
                if self.is_sqlite or time.monotonic() > end:
                    raise
                log.warning("database_awaited", error=str(error))
                await asyncio.sleep(1.0)

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
            await stack.enter_async_context(self._turn())
            stack.enter_context(self._reaching())
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
            stack.enter_context(self._reaching())
            yield await stack.enter_async_context(AsyncSession(self._read_engine, expire_on_commit=False))

    @asynccontextmanager
    async def migration(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that has its turn among the writers, and all the time that it needs."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._writing)
            stack.enter_context(self._reaching())
            engine = self.engine
            if not self.is_sqlite:
                from libs.db import postgres

                engine = postgres.open_for_migration(self._url, self.settings.password, self.settings.tls)
                stack.push_async_callback(engine.dispose)
            yield await stack.enter_async_context(engine.begin())

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Puts into words what happens before there is a connection; the engine's own errors are in words already."""
        try:
            yield
        except PoolTimeout as error:
            raise Transient("too many queries at a time; try again") from error
        except Exception as error:
            if self._is_lost(error):
                raise Transient("the database could not finish this (the connection was lost); try again") from error
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Among the writers of this process; those of others wait in the database."""
        try:
            async with asyncio.timeout(self._turn_seconds):
                await self._writing.acquire()
        except TimeoutError:
            raise Transient("the database could not finish this (others were writing for too long); try again") from None
        try:
            yield
        finally:
            self._writing.release()
