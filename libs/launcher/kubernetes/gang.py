"""One launch of several workers, a pod each: begun together, and ended together with the first that fails."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from lightkube.resources.core_v1 import Pod as Manifest

from libs.launcher.kubernetes.cluster import Cluster
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.process import CARRIED_SECONDS, Pod
from libs.launcher.launcher import Exit, Launch
from libs.launcher.opening import LauncherSettings

INDEX = "batch.kubernetes.io/job-completion-index"
# The cluster shows the end of one after that of another which it has brought about.
NEWS_SECONDS = 3.0


class Gang(Pod):
    """See Process. It is the first worker, whose files come home; of its peers only how they end, and what they said last."""

    def __init__(
        self, launch: Launch, name: str, cluster: Cluster, exchange: Exchange, settings: LauncherSettings, on_end: Callable[[], object]
    ) -> None:
        super().__init__(launch, name, cluster, exchange, settings, on_end)
        folders = [*([launch.cwd] if launch.cwd else []), *launch.inputs]
        given = replace(launch, cwd=None, inputs=folders, journals=(), stdout=None, stderr=None)
        peers = range(1, launch.workers)
        self._peers = [Pod(given, f"{name}.{index}", cluster, exchange, settings, lambda: None) for index in peers]
        for peer in self._peers:
            # They read one Secret.
            peer.shipment.token = self.shipment.token
        self._failed: tuple[str, Exit, float] | None = None

    def look(self, pod: Manifest, *, deleted: bool) -> None:
        """See Pod."""
        index = index_of(pod)
        if index == 0:
            super().look(pod, deleted=deleted)
        elif index <= len(self._peers):
            self._peers[index - 1].look(pod, deleted=deleted)
        self._change.set()

    def listed(self, indexes: set[int]) -> None:
        """See Pod."""
        super().listed(indexes)
        for index, peer in enumerate(self._peers, 1):
            peer.listed({0} if index in indexes else set())

    async def started(self) -> None:
        """Returns once all run; raises LaunchError when one will not."""
        for peer in self._peers:
            peer.handle = self.handle
        starting = [asyncio.ensure_future(each) for each in (super().begun(), *(peer.begun() for peer in self._peers))]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
        self.watch()

    async def stop(self, grace_seconds: float = 5.0) -> Exit:
        """See Process."""
        for peer in self._peers:
            peer.shipment.order_stop(grace_seconds)
        return await super().stop(grace_seconds)

    async def abandon(self) -> None:
        """See Pod."""
        for peer in self._peers:
            await self._exchange.withdraw(peer.shipment)
        await super().abandon()

    def _end(self) -> tuple[Exit, str] | None:
        """The first worker's end is that of all; so is a failure of a peer, once the first has told what it had to."""
        now, first = time.monotonic(), super()._end()
        for index, peer in enumerate(self._peers, 1):
            end = peer._end()
            if end and not end[0].ok and (self._failed is None or (end[0].oom and not self._failed[1].oom)):
                words = end[1] or (peer.seen.last_words if peer.seen else "") or str(end[0])
                self._failed = f"worker {index} of {len(self._peers) + 1} ended first: {words}", end[0], now
        if first and (first[0].ok or self._asked or self.shipment.refusal):
            return first
        if self._failed and (first or now - self._failed[2] > CARRIED_SECONDS):
            words, exit, _ = self._failed
            return (exit, words) if not (first and first[0].oom) else first
        return first if first and self._ended_at and now - self._ended_at > NEWS_SECONDS else None


def index_of(pod: Manifest) -> int:
    """Which worker it is."""
    return int((pod.metadata.annotations or {}).get(INDEX, "0")) if pod.metadata else 0
