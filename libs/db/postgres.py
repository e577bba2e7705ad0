"""PostgreSQL as a database of units: one writer at a time over all replicas, waits with an end, errors in words (docs/adr/0007).

Imported only where a URL says so: the driver takes a tenth of a second.
"""

import ssl
from typing import Any, Protocol

import asyncpg  # type: ignore[import-untyped]
from pydantic import SecretStr
from sqlalchemy import URL, NullPool, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from libs.errors import AppError, Invalid, Transient

# Execution options of a session for queries: one state of the database, however many statements.
READING = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

# Any number, the same in every process. Advisory locks are a database's own, so services do not meet in it.
_WRITER = 0x6C6570746F6E
_CONNECT_SECONDS = 10.0
_RECYCLE_SECONDS = 300
LOCK_SECONDS, STATEMENT_SECONDS, IDLE_SECONDS = 15, 60, 20
# A migration waits its turn behind another replica's, and rewrites tables as large as they are.
_MIGRATION_LOCK_SECONDS = 1800


class Tls(Protocol):
    """What proves the server, and perhaps this client."""

    @property
    def ca_file(self) -> str: ...

    @property
    def cert_file(self) -> str: ...

    @property
    def key_file(self) -> str: ...


def open_postgres(url: URL, password: SecretStr, tls: Tls, *, pool_size: int) -> AsyncEngine:
    """The engine of units and reads."""
    pool = {"pool_size": pool_size, "max_overflow": pool_size, "pool_timeout": _CONNECT_SECONDS, "pool_recycle": _RECYCLE_SECONDS}
    engine = _engine(url, password, tls, LOCK_SECONDS, STATEMENT_SECONDS, **pool)
    event.listen(engine.sync_engine, "checkout", _check)
    return engine


def open_for_migration(url: URL, password: SecretStr, tls: Tls) -> AsyncEngine:
    """An engine whose statements take as long as they need."""
    return _engine(url, password, tls, _MIGRATION_LOCK_SECONDS, 0, poolclass=NullPool)


def _engine(url: URL, password: SecretStr, tls: Tls, lock_seconds: int, statement_seconds: int, **pool: Any) -> AsyncEngine:
    if url.password is not None or url.query:
        raise ValueError("a PostgreSQL URL has neither password nor parameters; the password is the setting DATABASE__PASSWORD")
    if not url.username or not url.host or not url.database:
        raise ValueError('a PostgreSQL URL names role, host and database: "postgresql+asyncpg://role@host:5432/database"')
    session = {
        "application_name": "lepton",
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",
        "lock_timeout": f"{lock_seconds}s",
        "statement_timeout": f"{statement_seconds}s",
        # Whoever froze, or whose machine went away, holds the writers' lock no longer than this.
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        "client_connection_check_interval": "5s",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    context = _tls_context(tls)

    async def connect() -> Any:
        try:
            return await asyncpg.connect(
                host=url.host,
                port=url.port or 5432,
                user=url.username,
                database=url.database,
                password=password.get_secret_value() or None,
                ssl=context,
                timeout=_CONNECT_SECONDS,
                # The server's own limit comes first; this one is for a server that no longer answers.
                command_timeout=statement_seconds + IDLE_SECONDS if statement_seconds else None,
                server_settings=session,
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _of_connecting(error, url) from error

    engine = create_async_engine(url, async_creator=connect, **pool)
    event.listen(engine.sync_engine, "begin", _begin)
    event.listen(engine.sync_engine, "handle_error", _refuse)
    return engine


def _tls_context(tls: Tls) -> ssl.SSLContext | str:
    """Without an authority: encrypted where the server offers it, and nobody's identity proven."""
    if not tls.ca_file:
        if tls.cert_file or tls.key_file:
            raise ValueError("a client certificate needs the authority that proves the server too: set DATABASE__TLS__CA_FILE")
        return "prefer"
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.cert_file:
        context.load_cert_chain(tls.cert_file, tls.key_file or None)
    return context


def _begin(connection: Any) -> None:
    """Writers come one after another; each sees all that those before it committed. Readers wait for nobody."""
    if not connection.get_execution_options().get("postgresql_readonly"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")


def _check(connection: Any, _record: Any, _proxy: Any) -> None:
    """A connection that the server has closed is replaced. A ping would cost three round trips and know no more."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def is_lost(error: Exception) -> bool:
    """Whether a connection broke where the engine's events do not see it: while it was being made ready, or twice as it was replaced."""
    return isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError) or str(error) == "This connection is closed"


def _of_connecting(error: Exception, url: URL) -> AppError:
    if (getattr(error, "sqlstate", None) or "")[:2] in ("28", "3D", "42"):
        return Transient(f"the database server at {url.host} refuses role {url.username} on database {url.database}: {error}")
    return Transient(f"the database server at {url.host} cannot be reached; try again")


_FULL, _READ_ONLY, _NO_SUCH_CHARACTER = "53100", "25006", ("22021", "22P05")
# Connection lost; resources; shut down or cancelled; the disk; another's turn; idle in a transaction, or too long in it.
_PASSING = ("08", "53", "57", "58", "40", "55P03", "25P03", "25P04")


def _refuse(context: ExceptionContext) -> None:
    """Turns what the server says, or its silence, into the platform's words; what contradicts a constraint stays what it is."""
    error = context.original_exception
    state: str = getattr(error, "sqlstate", None) or ""
    if isinstance(error, OSError):
        # What was asked may yet be answered: nobody else must read that answer.
        context.is_disconnect = True
    if state == _FULL:
        raise AppError("the disk of the database server is full; free some space and try again", code="storage_full") from error
    if state == _READ_ONLY:
        raise AppError("the database takes no writes: it is a standby, or was made read-only", code="unavailable") from error
    if state in _NO_SUCH_CHARACTER:
        raise Invalid("a text holds the character NUL or another that cannot be stored") from error
    if state.startswith(_PASSING) or context.is_disconnect or type(error).__name__ == "InvalidCachedStatementError":
        raise Transient(f"the database could not finish this ({_reason(error, state)}); try again") from error


def _reason(error: BaseException, state: str) -> str:
    if state == "55P03":
        return "others were writing for too long"
    if state == "57014":
        return "it took too long"
    return "the connection was lost" if not state or state[:2] in ("08", "57", "25") else f"its code {state}"
