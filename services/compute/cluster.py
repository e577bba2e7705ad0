"""Speaks for the machines of a Kubernetes cluster: says what they have for the platform, and which of them live."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import TypeVar

import msgspec
import structlog
from lightkube import AsyncClient, operators

from lepton.compute.v1.compute_service_pb2 import RegisterNodeRequest
from libs.kubernetes import UNREACHED, open_client, words
from libs.lifecycle import Loop
from libs.rpc import Client
from services.compute.agent import at_last
from services.compute.inventory import FINISHED, Machine, Pod, Taken, offered
from services.compute.settings import Settings

log = structlog.get_logger()

# A cluster whose API does not answer goes on running what it has; after a while nobody knows any more whether it does.
KEPT_SECONDS = 60.0
READ_SECONDS = 30.0
# An object may have 1.5 MB: so many are held at a time.
PAGE = 200
# What Kubernetes itself is made for.
MAX_MACHINES, MAX_PODS = 5_000, 150_000
# Registrations under way at a time: each is a write.
ABREAST = 8
_BOUND: dict[str, str | operators.BinaryOperator | operators.SequenceOperator] = {
    "status.phase": operators.not_in(FINISHED),
    "spec.nodeName": operators.not_equal(""),
}

T = TypeVar("T")


class TooLarge(Exception):
    """More than is read of a cluster."""


class ClusterAgent:
    """A component; ready once the machines that it found are registered. It may find none: the cluster may be away."""

    def __init__(self, compute: Client, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._compute, self._settings, self._clock = compute, settings, clock
        self._client: AsyncClient | None = None
        self._nodes: Sequence[RegisterNodeRequest] = ()
        self._read_time = clock()
        self._away = self._withdrawn = False
        # Two loops: a cluster that answers slowly does not keep its machines from being registered in time. Each look wakes the second.
        self._reader = Loop("cluster-reader", self.read, interval=settings.node_lease_seconds / 3)
        self._speaker = Loop("cluster-speaker", self.register, interval=settings.node_lease_seconds / 2)

    async def start(self) -> None:
        """Raises ValueError where no cluster is configured; one that is away is looked for again and again."""
        self._client = await asyncio.to_thread(open_client, self._settings.kubeconfig)
        try:
            await self.read()
            await at_last(self.register)
        except BaseException:
            await self._close()
            raise
        await self._reader.start()
        await self._speaker.start()

    async def stop(self) -> None:
        try:
            await asyncio.gather(self._reader.stop(), self._speaker.stop())
        finally:
            await self._close()

    async def read(self) -> None:
        """Looks at the cluster once. What was known before stays known where it does not answer."""
        began = self._clock()
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._nodes = await self._machines()
        except (*UNREACHED, msgspec.MsgspecError, TooLarge, ValueError) as error:
            if not self._away:
                log.warning("cluster_away", reason=words(error), kept_seconds=KEPT_SECONDS)
            self._away = True
            # The next look opens another client: certificates, tokens and addresses may have changed.
            await self._close()
            return
        if self._away:
            log.info("cluster_back", nodes=len(self._nodes), seconds=round(began - self._read_time, 1))
        self._read_time, self._away = began, False
        self._speaker.wake()

    async def register(self) -> None:
        """Registers what is known, unless that is too long ago."""
        gone = self._clock() - self._read_time > KEPT_SECONDS
        if gone and not self._withdrawn:
            log.warning("cluster_nodes_withdrawn", nodes=len(self._nodes))
        self._withdrawn = gone
        if gone:
            return
        places = asyncio.Semaphore(ABREAST)

        async def register(request: RegisterNodeRequest) -> None:
            async with places:
                await self._compute.RegisterNode(request)

        async with asyncio.timeout(self._settings.node_lease_seconds):
            answers = await asyncio.gather(*map(register, self._nodes), return_exceptions=True)
        # One that is refused does not keep the others from being registered; the loop tells of it.
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _machines(self) -> list[RegisterNodeRequest]:
        if self._client is None:
            self._client = await asyncio.to_thread(open_client, self._settings.kubeconfig)
        client = self._client
        machines = [m async for m in _at_most(MAX_MACHINES, "nodes", client.list(Machine, chunk_size=PAGE))]
        taken: defaultdict[str, Taken] = defaultdict(Taken)
        async for pod in _at_most(MAX_PODS, "pods", client.list(Pod, namespace="*", chunk_size=PAGE, fields=_BOUND)):
            if pod.spec.nodeName:
                taken[pod.spec.nodeName].take(pod)
        pool_label, tolerated = self._settings.pool_label, self._settings.tolerated_taints
        nodes = [offered(m, taken[m.metadata.name], pool_label=pool_label, tolerated=tolerated) for m in machines]
        return [node for node in nodes if node is not None]

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def _at_most(limit: int, what: str, found: AsyncIterable[T]) -> AsyncIterator[T]:
    count = 0
    async for item in found:
        count += 1
        if count > limit:
            raise TooLarge(f"more than {limit} {what}")
        yield item
