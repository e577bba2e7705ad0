"""Launches of one group, in pods of one Deployment: it has as many pods as there are launches, and each waits until one is bound to it.

Knows no launch's program. What the cluster does behind our back, it does with pods that run nothing yet.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from lightkube.resources.core_v1 import Pod as Manifest

from libs.errors import Transient
from libs.launcher.kubernetes import deployment
from libs.launcher.kubernetes.cluster import Cluster
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.process import Pod
from libs.launcher.launcher import Launch, LaunchError
from libs.launcher.opening import LauncherSettings

log = structlog.get_logger()

# After so long the cluster knows of every pod that was deleted here.
KNOWN_SECONDS, PAUSE_SECONDS = 5.0, 1.0


class Group:
    """`make` first. `name` is the Deployment's."""

    def __init__(self, name: Callable[[], str], cluster: Cluster, exchange: Exchange, settings: LauncherSettings) -> None:
        self._new_name, self._cluster, self._exchange, self._settings = name, cluster, exchange, settings
        self.name = ""
        self.made = False
        self._token = secrets.token_urlsafe(32)
        self._members: dict[str, GroupPod] = {}
        self._pods: dict[str, Manifest] = {}
        self._replicas = 0
        self._surplus_since: float | None = None
        self._making = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def make(self, launch: Launch, address: Callable[[], str]) -> None:
        """The Deployment and its Secret, once. A crash after any line leaves what the launcher's sweep finds."""
        async with self._making:
            if self.made:
                return
            # Never the one of an earlier try, of which something may be left.
            self.name = self._new_name()
            try:
                uid = await self._cluster.create_deployment(deployment.deployment(self.name, launch, self._settings))
                reached = await asyncio.to_thread(address)
                secret = deployment.secret(self.name, uid, reached, self._exchange.certificate, self._token, self._settings)
                await self._cluster.create_secret(secret)
            except BaseException:
                self.name = ""
                raise
            self.made = True
            self._task = asyncio.create_task(self._run(), name=f"group {self.name}")

    async def close(self) -> None:
        """Removes it; what fails of that is the launcher's sweep's."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.name:
            try:
                await self._cluster.remove_deployment(self.name)
            except (Transient, LaunchError) as error:
                log.warning("deployment_removal_put_off", deployment=self.name, error=str(error))

    def join(self, member: "GroupPod") -> None:
        """It gets a pod."""
        self._members[member.name] = member
        self.wake()

    def leave(self, member: "GroupPod") -> None:
        """Its pod goes, if it has one."""
        self._members.pop(member.name, None)
        self.wake()

    def wake(self) -> None:
        self._changed.set()

    def look(self, pod: Manifest, *, deleted: bool) -> None:
        """What the cluster shows of one of its pods."""
        assert pod.metadata
        uid = str(pod.metadata.uid)
        if deleted or pod.metadata.deletionTimestamp:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod
        self.wake()

    def look_anew(self) -> None:
        """The cluster is about to show all of them."""
        self._pods.clear()
        self.wake()

    def count(self, replicas: int) -> None:
        """How many it has to have, as the cluster has been told, perhaps by others."""
        self._replicas = replicas
        self.wake()

    async def why_podless(self) -> str:
        """What keeps the cluster from making pods, if it says so."""
        return await self._cluster.why_podless(self.name)

    def bind(self, member: "GroupPod", uid: str) -> None:
        """Before the gate opens: the courier may be as fast as it likes."""
        self._exchange.hand_over(member.shipment, group=self.name, token=self._token, instance=uid)
        member.bind(uid)

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except (Transient, LaunchError) as error:
                log.warning("group_not_as_it_should_be", deployment=self.name, error=str(error))
                if isinstance(error, LaunchError):
                    for member in self._members.values():
                        member.refuse(str(error))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            except Exception:
                log.exception("group_failed", deployment=self.name)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._surplus_since is None else KNOWN_SECONDS):
                    await self._changed.wait()

    async def _turn(self) -> None:
        """Makes the cluster's pods what the members need. Safe to break off anywhere."""
        self._changed.clear()
        if len(self._members) > self._replicas:
            await self._scale()
        self._bind_all()
        for uid in list(self._pods):
            await self._tend(uid)
        await self._shrink()

    def _bind_all(self) -> None:
        for member in self._members.values():
            if member.uid and member.uid not in self._pods and not member.placed:
                # The cluster has taken it before it was anywhere.
                member.unbind()
        idle = self._idle()
        for member in self._members.values():
            if idle and not member.uid:
                self.bind(member, idle.pop(0))

    async def _tend(self, uid: str) -> None:
        pod, member = self._pods.get(uid), self._member(uid)
        if pod is None or not pod.metadata or not pod.metadata.name:
            return
        if deployment.is_gated(pod):
            if member:
                await self._cluster.change_pod(pod.metadata.name, deployment.opened(member.name, member.launch, self._settings))
        elif member is None:
            await self._cluster.remove_pod(pod.metadata.name)

    async def _shrink(self) -> None:
        """Takes back what nobody needs, once the cluster has seen that the pod of whoever left is gone.

        It has when it has made another one in its place; before that it would take one that is in use.
        """
        surplus, now = self._replicas - len(self._members), time.monotonic()
        if surplus <= 0:
            self._surplus_since = None
            return
        self._surplus_since = self._surplus_since or now
        if not self._members or len(self._idle()) >= surplus or now - self._surplus_since >= KNOWN_SECONDS:
            await self._scale()
            self._surplus_since = None

    async def _scale(self) -> None:
        wanted = len(self._members)
        await self._cluster.scale(self.name, wanted)
        self._replicas = wanted

    def _idle(self) -> list[str]:
        return [uid for uid, pod in self._pods.items() if deployment.is_gated(pod) and not self._member(uid)]

    def _member(self, uid: str) -> "GroupPod | None":
        return next((member for member in self._members.values() if member.uid == uid), None)


class GroupPod(Pod):
    """See Process. Its pod is the one that it is bound to; before that it waits for one."""

    def __init__(
        self,
        launch: Launch,
        name: str,
        group: Group,
        cluster: Cluster,
        exchange: Exchange,
        settings: LauncherSettings,
        on_end: Callable[[], object],
    ) -> None:
        super().__init__(launch, name, cluster, exchange, settings, on_end)
        self._group = group
        self.uid = ""
        # Whether a node has it.
        self.placed = False
        self._refusal = ""
        self.shipment.told = deployment.contents(launch, settings)

    def has_ended(self) -> bool:
        """Whether its program has."""
        return self._seen is not None and self._seen.exit is not None

    def bind(self, uid: str) -> None:
        self.uid, self.handle = uid, f"pod/{self._cluster.namespace}/{self.name}/{uid}"

    def unbind(self) -> None:
        """It waits for another one."""
        self.uid, self._seen = "", None

    def refuse(self, words: str) -> None:
        """The cluster does not do what would start it."""
        self._refusal = words
        self._change.set()

    def look(self, pod: Manifest, *, deleted: bool) -> None:
        """See Pod. How its program ended stays: what its containers do after that is not its doing."""
        if not pod.metadata or pod.metadata.uid != self.uid:
            return
        self.placed = self.placed or bool(pod.spec and pod.spec.nodeName)
        if self.has_ended():
            self._gone = self._gone or deleted
            self._change.set()
        elif self.placed or not deleted:
            super().look(pod, deleted=deleted)
        if self.has_ended():
            self.shipment.order_last()

    def listed(self, indexes: set[int]) -> None:
        """See Pod."""
        if self.placed:
            super().listed(indexes)

    async def _remove(self) -> None:
        self._group.leave(self)

    async def _podless(self) -> str:
        return "" if self.uid else await self._group.why_podless()

    def _why_not(self) -> str:
        return self._refusal or super()._why_not()
