"""Where a call becomes a unit of work: the base of every servicer."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncSession

from libs.db import Database, RequestKey, Unit
from libs.rpc import current_call


class Edge:
    """Opens units and read sessions for the methods of a servicer:

    async def CreateDataset(self, request, context):
        async with self.unit(request) as unit:
            dataset = await handlers.create_dataset(unit, workspace=self.workspace, name=request.name)
            return await unit.reply(wire.dataset_message(dataset))
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def workspace(self) -> str:
        """On whose behalf the current call is made."""
        return current_call().identity.workspace

    @property
    def member(self) -> str:
        """Who makes the current call."""
        return current_call().identity.member

    @asynccontextmanager
    async def unit(self, request: Message) -> AsyncIterator[Unit]:
        """The call's transaction; under an idempotency key that was used before, the answer of then is given and this block never runs."""
        call = current_call()
        key = None
        if call.idempotency_key:
            key = RequestKey(call.identity.workspace, call.method, call.idempotency_key, request)
        async with self.database.unit(key) as unit:
            yield unit

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A session for queries."""
        return self.database.read()
