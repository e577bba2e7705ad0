"""Rows and tokens are on disk before their answer is sent, and with the services that bill them a moment later.

Knows who is told; not what a row costs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lepton.deployment.v1 import deployment_service_pb2 as deployment_pb2
from lepton.marketplace.v1 import marketplace_service_pb2 as marketplace_pb2
from libs.rpc import Call, acting
from services.gateway.inference.spool import Spool
from services.gateway.peers import Peers

# One call's worth; the contract's limit on records.
MAX_RECORDS = 1000
_ENDPOINT, _SUBSCRIPTION = "endpoint", "subscription"


class Use(NamedTuple):
    """Of one request; without rows, more of one whose rows were told already."""

    rows: int
    tokens_in: int = 0
    tokens_out: int = 0


class Meter:
    """A lifecycle component. Lines of the spool: what is billed, its name, rows, tokens."""

    def __init__(self, peers: Peers, folder: Path) -> None:
        self._peers = peers
        self._spool = Spool(folder, self._take)

    async def start(self) -> None:
        """Takes up what another process left."""
        await self._spool.start()

    async def stop(self) -> None:
        """Tells what has not been told."""
        await self._spool.stop()

    def predicted(self, workspace: str, endpoint: str, use: Use) -> None:
        """By an endpoint of the workspace that pays."""
        self._spool.write(_ENDPOINT, f"{workspace}/{endpoint}", *use)

    def invoked(self, subscription: str, use: Use) -> None:
        """By somebody else's endpoint, for the subscription's price."""
        self._spool.write(_SUBSCRIPTION, subscription, *use)

    async def _take(self, name: str, lines: Sequence[Sequence[Any]]) -> None:
        sums: dict[tuple[str, str], list[int]] = {}
        for kind, key, rows, *tokens in lines:
            total = sums.setdefault((kind, key), [0, 0, 0, 0])
            for place, amount in enumerate([1 if rows else 0, rows, *tokens]):
                total[place] += amount
        with acting(Call()):
            await self._tell_deployment(name, [(key, *total) for (kind, key), total in sums.items() if kind == _ENDPOINT])
            await self._tell_marketplace(name, [(key, *total) for (kind, key), total in sums.items() if kind == _SUBSCRIPTION])

    async def _tell_deployment(self, name: str, totals: Sequence[tuple[Any, ...]]) -> None:
        for number, some in enumerate(_calls(totals)):
            request = deployment_pb2.RecordPredictionsRequest(batch_id=f"{name}/{number}")
            for key, requests, rows, tokens_in, tokens_out in some:
                workspace, _, endpoint = key.partition("/")
                request.records.add(
                    workspace=workspace, endpoint=endpoint, requests=requests, rows=rows, tokens_in=tokens_in, tokens_out=tokens_out
                )
            await self._peers.deployment.RecordPredictions(request)

    async def _tell_marketplace(self, name: str, totals: Sequence[tuple[Any, ...]]) -> None:
        for number, some in enumerate(_calls(totals)):
            request = marketplace_pb2.RecordInvocationsRequest(batch_id=f"{name}/{number}")
            for key, requests, rows, *_tokens in some:
                request.records.add(subscription=key, requests=requests, rows=rows)
            await self._peers.marketplace.RecordInvocations(request)


def _calls(totals: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    for start in range(0, len(totals), MAX_RECORDS):
        yield totals[start : start + MAX_RECORDS]
