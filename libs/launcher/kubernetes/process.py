"""One program in its pod, from its start to its end, out of what the cluster shows of the pod and what its courier brings."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from lightkube.resources.core_v1 import Pod as Manifest

from libs.errors import Transient
from libs.launcher.kubernetes import manifests, pods
from libs.launcher.kubernetes.cluster import Cluster
from libs.launcher.kubernetes.courier import ALONE_SECONDS
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.launcher import Exit, Launch, LaunchError
from libs.launcher.opening import LauncherSettings

log = structlog.get_logger()

TICK_SECONDS = 1.0
# A pod ends its program after ALONE_SECONDS without a word from here: whoever was not heard for longer than that has ended.
LOST_SECONDS = ALONE_SECONDS + 30.0
# Between a program's end and its courier's last word.
CARRIED_SECONDS = 30.0
# The order takes effect within its grace and so much more, or the cluster is asked to kill.
OBEYED_SECONDS, KILLED_SECONDS = 15.0, 30.0
# For what may pass by itself: an image that cannot be pulled just now, a Job without a pod.
STUCK_SECONDS, PODLESS_SECONDS = 30.0, 10.0


class Pod:
    """See Process."""

    pid = 0

    def __init__(
        self, launch: Launch, name: str, cluster: Cluster, exchange: Exchange, settings: LauncherSettings, on_end: Callable[[], object]
    ) -> None:
        self.launch, self.id, self.name = launch, launch.id, name
        self.handle = ""
        self._cluster, self._exchange, self._settings, self._on_end = cluster, exchange, settings, on_end
        self._change = asyncio.Event()
        self._seen: pods.Seen | None = None
        self._gone = self._asked = False
        self._ended_at: float | None = None
        self._began = time.monotonic()
        self._stuck_since: float | None = None
        self._watching: asyncio.Task[Exit] | None = None
        self.shipment = exchange.offer(
            name, folder=launch.cwd, inputs=launch.inputs, journals=manifests.journals(launch), changed=self._change.set
        )

    @property
    def host(self) -> str:
        """See Process."""
        return self._seen.ip if self._seen else ""

    def look(self, pod: Manifest, *, deleted: bool) -> None:
        """What the cluster shows of its pod."""
        self._seen = pods.see(pod)
        self._gone = self._gone or deleted
        self._change.set()

    @property
    def seen(self) -> pods.Seen | None:
        """What the cluster showed last; None: no pod."""
        return self._seen

    def listed(self, indexes: set[int]) -> None:
        """The cluster shows its pods of these numbers and no others; one that was there before is deleted."""
        if 0 not in indexes and self._seen is not None:
            self._gone = True
            self._change.set()

    async def started(self) -> None:
        """Returns once the program runs, or has run. Raises LaunchError when it will not."""
        await self.begun()
        self.watch()

    def watch(self) -> None:
        """It runs: from now on its end is waited for."""
        self._watching = asyncio.create_task(self._watch(), name=f"pod {self.name}")

    async def begun(self) -> None:
        """As `started`."""
        next_question = self._began + PODLESS_SECONDS
        while not (self._seen and (self._seen.running or self._seen.exit) and not self._seen.not_started):
            if why := self._why_not():
                raise LaunchError(f"{self.id} could not be started: {why}")
            if self._seen is None and time.monotonic() > next_question:
                next_question += PODLESS_SECONDS
                if why := await self._podless():
                    raise LaunchError(f"{self.id} could not be started: the cluster makes no pod for it: {why}")
            await self._require_in_time()
            await self._next()

    async def wait(self) -> Exit:
        """See Process."""
        assert self._watching
        return await asyncio.shield(self._watching)

    async def stop(self, grace_seconds: float = 5.0) -> Exit:
        """See Process."""
        self._asked = True
        self.shipment.order_stop(grace_seconds)
        patience = grace_seconds + OBEYED_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    return await self.wait()
            log.warning("pod_does_not_obey", pod=self.name)
            with suppress(Transient, LaunchError):
                await self._remove()
            patience = KILLED_SECONDS

    def alive(self) -> bool:
        """See Process."""
        return self._watching is not None and not self._watching.done() and not (self._seen and self._seen.exit)

    async def abandon(self) -> None:
        """Nothing of it is left, or the launcher's sweep sees to it."""
        await self._exchange.withdraw(self.shipment)
        self._on_end()
        try:
            await self._remove()
        except (Transient, LaunchError) as error:
            log.warning("job_removal_put_off", job=self.name, error=str(error))

    async def _remove(self) -> None:
        await self._cluster.remove(self.name)

    async def _podless(self) -> str:
        """Why the cluster makes no pod for it, if it says so."""
        return await self._cluster.warning_of(self.handle.rpartition("/")[2])

    def _why_not(self) -> str:
        """Why it will not start, if that is clear by now."""
        seen, now = self._seen or pods.Seen(), time.monotonic()
        if seen.not_started:
            return seen.not_started
        if self._gone:
            return "its pod was deleted"
        if seen.over:
            return seen.lost or "its pod ended before it began"
        if not seen.stuck:
            self._stuck_since = None
        elif seen.hopeless or now - (self._stuck_since or now) > STUCK_SECONDS:
            return seen.stuck
        else:
            self._stuck_since = self._stuck_since or now
        if seen.unplaced and now - self._began > self._settings.place_seconds:
            return f"the cluster has no place for it: {seen.unplaced}"
        return ""

    async def _require_in_time(self) -> None:
        """Raises LaunchError once it takes too long; some reasons stand in no status, only in what the cluster says beside it."""
        limit = self._settings.start_seconds
        if time.monotonic() - self._began > limit:
            said = await self._cluster.warning_of(self._seen.uid) if self._seen else ""
            raise LaunchError(f"{self.id} could not be started: it did not begin within {limit:g} s" + (f": {said}" if said else ""))

    async def _watch(self) -> Exit:
        while (end := self._end()) is None:
            await self._next()
        exit, words = end
        await self._exchange.withdraw(self.shipment)
        if words and not self._asked and not exit.ok:
            log.warning("pod_ended", pod=self.name, words=words)
            await asyncio.to_thread(_add_words, self.launch.stderr or self.launch.stdout, words)
        await self.abandon()
        return exit

    def _end(self) -> tuple[Exit, str] | None:
        """How it ended, with words where that was not its own doing; None while it has not, or not all of it is home."""
        seen, now = self._seen or pods.Seen(), time.monotonic()
        ended = seen.exit is not None or seen.over or self._gone
        if not ended:
            heard = self.shipment.heard or self._began
            return (pods.LOST, "its node has been silent for too long") if now - heard > LOST_SECONDS else None
        self._ended_at = self._ended_at or now
        if not (self.shipment.done or seen.over or self._gone or now - self._ended_at > CARRIED_SECONDS):
            return None
        if self.shipment.refusal:
            return Exit(1), f"it was ended: {self.shipment.refusal}"
        if seen.exit is None:
            return pods.LOST, seen.lost or "its pod was deleted"
        if not self.shipment.done:
            log.warning("pod_ended_without_last_words", pod=self.name)
        return seen.exit, f"it could not be started: {seen.not_started}" if seen.not_started else seen.lost

    async def _next(self) -> None:
        """Returns after a change, or a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                await self._change.wait()
        self._change.clear()


def _add_words(path: Path | None, words: str) -> None:
    """As the program's last line: its owner shows it as the reason."""
    if path is None:
        return
    with suppress(OSError), path.open("ab") as file:
        file.write(f"\n{words}\n".encode())
