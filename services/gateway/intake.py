"""Bytes of clients on their way into the artifact store: bounded, and no more of them than the plan has room for."""

from collections.abc import AsyncIterator

from starlette.requests import Request

from lepton.accounts.v1 import accounts_service_pb2, workspace_pb2
from libs.errors import Invalid, QuotaExceeded
from libs.rpc import Client
from libs.storage import ArtifactStore, Stored
from services.gateway.messages import declared_size, read_chunks
from services.gateway.problems import in_units
from services.gateway.settings import Limits

METRIC = "storage_bytes"


class Intake:
    """Reserves nothing: what counts is the quota that the version takes in the end. Here nothing is taken that would be refused there."""

    def __init__(self, accounts: Client, limits: Limits) -> None:
        self._accounts = accounts
        self._limits = limits

    async def require_room(self, size: int) -> None:
        """Raises QuotaExceeded. Before gigabytes are sent."""
        _require(await self._storage(), size)

    async def receive(self, request: Request, store: ArtifactStore, limit: int, advice: str) -> Stored:
        """The body, of at most `limit` bytes. Refused by what it says of its size, else cut off; an empty one is answered with `advice`."""
        storage = await self._storage()
        chunks = read_chunks(request, limit, self._limits.body_seconds)
        if (declared := declared_size(request)) <= limit:
            _require(storage, declared)
        stored = await store.put(_within(storage, chunks), limit=limit)
        if not stored.size:
            raise Invalid(f"the file is empty; {advice}", code="invalid_data")
        return stored

    async def _storage(self) -> workspace_pb2.Quota | None:
        me = await self._accounts.GetMe(accounts_service_pb2.GetMeRequest())
        return next((quota for quota in me.quotas if quota.metric == METRIC), None)


async def _within(storage: workspace_pb2.Quota | None, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        _require(storage, size, "at least ")
        yield chunk


def _require(storage: workspace_pb2.Quota | None, size: int, at_least: str = "") -> None:
    if storage is None or size <= storage.remaining:
        return
    raise QuotaExceeded(
        f"the plan allows {in_units(storage.limit)} of storage and {in_units(storage.used)} are in use, and the file has {at_least}"
        f"{in_units(size)}; delete a dataset or a model, or change to a larger plan: GET /v1/plans lists them",
        meta={"metric": METRIC, "limit": storage.limit, "used": storage.used, "remaining": storage.remaining},
    )
