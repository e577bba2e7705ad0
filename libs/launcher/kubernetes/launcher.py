"""The launcher's adapter for a cluster: a Job of one pod a launch, a Deployment a group, and one watch for the pods of all.

Whenever this process dies, nothing half made is left.
"""

import asyncio
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import structlog
from lightkube.resources.core_v1 import Pod

from libs.errors import Transient
from libs.launcher.kubernetes import deployment, manifests, meeting
from libs.launcher.kubernetes.cluster import Cluster
from libs.launcher.kubernetes.exchange import Exchange
from libs.launcher.kubernetes.gang import Gang, index_of
from libs.launcher.kubernetes.group import Group, GroupPod
from libs.launcher.kubernetes.landing import Limits
from libs.launcher.kubernetes.process import Pod as PodProcess
from libs.launcher.launcher import Launch, Launcher
from libs.launcher.opening import LauncherSettings
from libs.lifecycle import Component

log = structlog.get_logger()

# However well a watch seems to go, everything is looked at anew after so long.
RELIST_SECONDS, PAUSE_SECONDS = 60.0, 1.0


def open_kubernetes(settings: LauncherSettings) -> tuple[Launcher, Sequence[Component]]:
    """The launcher, and what it needs running."""
    cluster = Cluster(settings.namespace, settings.owner)
    exchange = Exchange("", settings.exchange_port, Limits(settings.file_bytes, settings.total_bytes, settings.files))
    launcher = KubernetesLauncher(cluster, exchange, settings)
    return launcher, (exchange, Watch(cluster, launcher))


class KubernetesLauncher:
    """See Launcher. Its Watch runs beside it."""

    def __init__(self, cluster: Cluster, exchange: Exchange, settings: LauncherSettings) -> None:
        self._cluster, self._exchange, self._settings = cluster, exchange, settings
        self.processes: dict[str, PodProcess] = {}
        # By group, and by what launches of one Deployment have in common.
        self.groups: dict[tuple[str, str], Group] = {}

    async def start(self, launch: Launch) -> PodProcess:
        """See Launcher. Seconds, and minutes where a node has to pull the image first."""
        manifests.require_possible(launch)
        name = _name(launch.id)
        on_end = partial(self.processes.pop, name, None)
        process: PodProcess
        if launch.group:
            deployment.require_possible(launch, self._settings)
            group = self._group_of(launch)
            process = GroupPod(launch, name, group, self._cluster, self._exchange, self._settings, on_end)
            made = self._join(group, process)
        else:
            kind = Gang if launch.workers > 1 else PodProcess
            process = kind(launch, name, self._cluster, self._exchange, self._settings, on_end)
            made = self._make(process)
        self.processes[name] = process
        making = asyncio.create_task(made, name=f"make {name}")
        try:
            await asyncio.shield(making)
            await process.started()
        except BaseException:
            # Broken off in the middle of a call, the call may yet succeed: it is waited for, and what it made removed.
            abandoning = asyncio.create_task(self._abandon(process, making), name=f"abandon {name}")
            await asyncio.shield(abandoning)
            raise
        return process

    async def end(self, handle: str) -> bool:
        """See Launcher."""
        kind, namespace, name, uid = (*handle.split("/"), "", "", "", "")[:4]
        if kind not in ("job", "pod") or namespace != self._cluster.namespace or not uid:
            return False
        if kind == "job" and await self._cluster.uid_of_job(name, namespace) != uid:
            return False
        if kind == "pod" and uid not in (await self._cluster.pods_of(name)).values():
            return False
        # No launch of ours ever gets a name again: it is still that one.
        log.warning("leftover_launch_ended", launch=name)
        await self._cluster.remove(name)
        return await self._cluster.gone(name)

    async def forget(self, group: str) -> None:
        """See Launcher."""
        await asyncio.gather(*(self.groups.pop(key).close() for key in list(self.groups) if key[0] == group))

    async def close(self) -> None:
        """No Deployment makes pods that nobody binds any more."""
        await asyncio.gather(*(group.close() for group in self.groups.values()))

    def group_of(self, pod: Pod) -> Group | None:
        """Whose pod it is."""
        name = (pod.metadata.labels or {}).get(manifests.GROUP) if pod.metadata else None
        return next((group for group in self.groups.values() if name and group.name == name), None)

    async def sweep(self) -> None:
        """Removes all of this owner's name that runs nothing of ours: an earlier owner's, or what could not be removed."""
        for name in await self._cluster.jobs():
            if name not in self.processes:
                log.warning("leftover_job_ended", job=name)
                await self._cluster.remove(name)
        await self._sweep_deployments()

    async def _sweep_deployments(self) -> None:
        made = {key: group.name for key, group in self.groups.items() if group.made}
        found = await self._cluster.deployments()
        ours = {group.name: group for group in self.groups.values()}
        for name, replicas in found.items():
            if name in ours:
                ours[name].count(replicas)
            else:
                log.warning("leftover_deployment_ended", deployment=name)
                await self._cluster.remove_deployment(name)
        for key, name in made.items():
            if name not in found and key in self.groups:
                log.warning("deployment_taken_away", deployment=name)
                await self.groups.pop(key).close()

    def _group_of(self, launch: Launch) -> Group:
        key = (launch.group, deployment.kind_of(launch, self._settings))
        if key not in self.groups:
            self.groups[key] = Group(partial(_name, launch.group), self._cluster, self._exchange, self._settings)
        return self.groups[key]

    async def _join(self, group: Group, process: GroupPod) -> None:
        await group.make(process.launch, self._address)
        group.join(process)

    async def _make(self, process: PodProcess) -> None:
        """A crash after any line leaves what `sweep` finds, and nothing that runs without its Secret."""
        launch, name, shipment = process.launch, process.name, process.shipment
        uid = await self._cluster.create_job(manifests.job(name, launch, self._settings))
        process.handle = f"job/{self._cluster.namespace}/{name}/{uid}"
        address = await asyncio.to_thread(self._address)
        secret = manifests.secret(name, uid, launch, address, self._exchange.certificate, shipment.token, self._settings)
        await self._cluster.create_secret(secret)
        if launch.workers > 1:
            await self._cluster.create_service(meeting.service(name, uid, self._settings))
            await self._cluster.create_policy(meeting.policy(name, uid, self._settings))
        await self._cluster.resume_job(name)

    async def _abandon(self, process: PodProcess, making: "asyncio.Task[None]") -> None:
        with suppress(Exception):
            await making
        await process.abandon()

    def _address(self) -> str:
        """Where pods reach the exchange."""
        host = self._settings.exchange_host or _own_address(self._cluster.server)
        return f"[{host}]:{self._exchange.port}" if ":" in host else f"{host}:{self._exchange.port}"


class Watch:
    """A component: one watch for the pods of all launches."""

    def __init__(self, cluster: Cluster, launcher: KubernetesLauncher) -> None:
        self._cluster, self._launcher = cluster, launcher
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ends what an earlier owner of this name left, before anything new begins."""
        await self._cluster.open()
        await self._launcher.sweep()
        self._task = asyncio.create_task(self._run(), name="watch pods")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._launcher.close()
        await self._cluster.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
                await self._launcher.sweep()
            except Transient as error:
                log.warning("watch_lost", error=str(error))
                await asyncio.sleep(PAUSE_SECONDS)
            except Exception:
                log.exception("watch_failed")
                await asyncio.sleep(PAUSE_SECONDS)

    async def _turn(self) -> None:
        known = dict(self._launcher.processes)
        version, pods = await self._cluster.pods()
        for group in self._launcher.groups.values():
            group.look_anew()
        listed = {self._tell("MODIFIED", pod) for pod in pods}
        for name, process in known.items():
            process.listed({index for launch, index in listed if launch == name})
        # A change that comes while nothing is heard is in the next list.
        with suppress(TimeoutError):
            async with asyncio.timeout(RELIST_SECONDS):
                async for change, pod in self._cluster.watch_pods(version):
                    self._tell(change, pod)

    def _tell(self, change: str, pod: Pod) -> tuple[str, int]:
        if group := self._launcher.group_of(pod):
            group.look(pod, deleted=change == "DELETED")
        name = (pod.metadata.labels or {}).get(manifests.LAUNCH, "") if pod.metadata else ""
        if process := self._launcher.processes.get(name):
            process.look(pod, deleted=change == "DELETED")
        return name, index_of(pod)


def _name(id: str) -> str:
    """Never given twice, and short enough for what the cluster makes of it."""
    plain = re.sub(r"[^a-z0-9]+", "-", id.lower()).strip("-")[:36].strip("-") or "program"
    plain = plain if plain[0].isalpha() else f"p-{plain}"
    return f"{plain}-{secrets.token_hex(5)}"


def _own_address(url: str) -> str:
    """From where this machine reaches that server; nothing is sent."""
    server = urlsplit(url)
    found = socket.getaddrinfo(server.hostname, server.port or 443, type=socket.SOCK_DGRAM)
    with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
        probe.connect(found[0][4])
        return str(probe.getsockname()[0])
