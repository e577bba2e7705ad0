"""One unit of work: a transaction with the events it emits and the request it answers."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson
from google.protobuf.message import Message
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.db.infrastructure import idempotency_keys, outbox
from libs.errors import AppError, Conflict, Invalid, Replay

Row = TypeVar("Row")
Reply = TypeVar("Reply", bound=Message)


class Emitted(Protocol):
    """What the outbox keeps of an event."""

    @property
    def topic(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    def headers(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class RequestKey:
    """A caller's idempotency key and the request it came with, scoped by workspace and method."""

    workspace: str
    method: str
    key: str
    request: Message

    @property
    def request_sha256(self) -> bytes:
        """Tells whether the key comes back with another request."""
        return hashlib.sha256(self.request.SerializeToString(deterministic=True)).digest()


class Unit:
    """What a handler works with. The edge opens and commits it; a handler never does, and awaits no network while it is open."""

    def __init__(self, session: AsyncSession, request: RequestKey | None = None) -> None:
        self.session = session
        self._request = request
        self._after_commit: list[Callable[[], Any]] = []
        self.emitted = False

    async def insert(self, row: Row, *, taken: AppError | None = None) -> Row:
        """Adds a row and checks the database's constraints now; `taken` is raised where a unique one says no."""
        self.session.add(row)
        try:
            await self.session.flush()
        except IntegrityError as error:
            raise taken or Conflict("the row contradicts another one") from error
        return row

    async def emit(self, *events: Emitted) -> None:
        """Writes events to the outbox: they are published if and only if this unit commits."""
        rows = [{"topic": e.topic, "key": e.key, "headers": e.headers(), "data": e.data} for e in events]
        if rows:
            await self.session.flush()
            await self.session.execute(insert(outbox), rows)
            self.emitted = True

    def after_commit(self, call: Callable[[], Any]) -> None:
        """Calls `call` (not a coroutine) once the unit has committed, e.g. to wake a reconciler. A hint: it may be lost."""
        self._after_commit.append(call)

    async def reply(self, message: Reply) -> Reply:
        """Remembers the answer under the request's idempotency key, if it has one, in this transaction; returns it."""
        await self._remember(response=message.SerializeToString())
        return message

    async def refuse(self, error: AppError) -> None:
        """Remembers an error that the same request would meet again, in this transaction."""
        await self._remember(problem=orjson.dumps(error.as_dict()))

    async def _remember(self, **answer: bytes) -> None:
        if not self._request:
            return
        await self.session.flush()
        await self.session.execute(
            insert(idempotency_keys).values(
                workspace=self._request.workspace,
                method=self._request.method,
                key=self._request.key,
                request_sha256=self._request.request_sha256,
                time=time.time(),
                **answer,
            )
        )

    async def replay(self) -> None:
        """Raises Replay, or the error of then, where the request's key has been answered; Invalid where it came with another request."""
        if not self._request:
            return
        found = (
            await self.session.execute(
                select(idempotency_keys.c.request_sha256, idempotency_keys.c.response, idempotency_keys.c.problem).where(
                    idempotency_keys.c.workspace == self._request.workspace,
                    idempotency_keys.c.method == self._request.method,
                    idempotency_keys.c.key == self._request.key,
                )
            )
        ).first()
        if found is None:
            return
        if found.request_sha256 != self._request.request_sha256:
            raise Invalid(
                f"the idempotency key '{self._request.key}' was used for another request; take a new one",
                code="idempotency_key_reused",
            )
        if found.problem is not None:
            raise AppError.from_dict(orjson.loads(found.problem))
        raise Replay(found.response)

    def committed(self) -> None:
        """Runs what waits for the commit; called by the edge."""
        for call in self._after_commit:
            call()
