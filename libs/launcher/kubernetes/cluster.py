"""The API server, as far as a launcher needs it. Each call takes 10 s at most."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightkube import ApiError, AsyncClient
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import Event, Pod, Secret, Service
from lightkube.resources.networking_v1 import NetworkPolicy
from lightkube.types import CascadeType, PatchType

from libs.errors import Transient
from libs.kubernetes import UNREACHED, open_client, words
from libs.launcher.kubernetes.manifests import GROUP, LAUNCH, OWNER
from libs.launcher.launcher import LaunchError

GONE_SECONDS, LOOK_SECONDS = 60.0, 0.3
KILL_SECONDS, MAX_WORDS = 1, 400
_LATER = (408, 409, 425, 429)


@contextmanager
def _answers() -> Iterator[None]:
    """Raises Transient where the API server is away, LaunchError where it refuses."""
    try:
        yield
    except ApiError as error:
        code = error.status.code or 500
        if code >= 500 or code in _LATER or code == 401:
            raise Transient(f"the cluster's API server does not answer: {code}") from error
        raise LaunchError(f"the cluster refuses it: {error.status.message}") from error
    except UNREACHED as error:
        raise Transient(f"the cluster's API server cannot be reached: {words(error)}") from error


class Cluster:
    """One namespace, and in it what one owner has made. `open` first."""

    def __init__(self, namespace: str, owner: str) -> None:
        self._wanted, self._owner = namespace, owner
        self._client: AsyncClient | None = None

    async def open(self) -> None:
        """By the process's service account, or by KUBECONFIG."""
        self._client = await asyncio.to_thread(open_client, namespace=self._wanted)

    async def close(self) -> None:
        if self._client:
            await self._client.close()
            self._client = None

    @property
    def namespace(self) -> str:
        return str(self._api.namespace)

    @property
    def server(self) -> str:
        """Its URL."""
        return str(self._api.config.cluster.server)

    async def create_job(self, manifest: Mapping[str, Any]) -> str:
        """Its uid."""
        with _answers():
            made = await self._api.create(Job.from_dict(dict(manifest)))
        return str(made.metadata.uid)

    async def create_secret(self, manifest: Mapping[str, Any]) -> None:
        with _answers():
            await self._api.create(Secret.from_dict(dict(manifest)))

    async def create_service(self, manifest: Mapping[str, Any]) -> None:
        with _answers():
            await self._api.create(Service.from_dict(dict(manifest)))

    async def create_policy(self, manifest: Mapping[str, Any]) -> None:
        with _answers():
            await self._api.create(NetworkPolicy.from_dict(dict(manifest)))

    async def resume_job(self, name: str) -> None:
        """Its pods may begin."""
        with _answers():
            await self._api.patch(Job, name, {"spec": {"suspend": False}}, patch_type=PatchType.MERGE)

    async def uid_of_job(self, name: str, namespace: str) -> str | None:
        try:
            with _answers():
                found = await self._api.get(Job, name, namespace=namespace)
        except LaunchError:
            return None
        return str(found.metadata.uid)

    async def jobs(self) -> list[str]:
        """Names of all that this owner, or an earlier one of its name, has made."""
        with _answers():
            return [
                job.metadata.name async for job in self._api.list(Job, labels={OWNER: self._owner}) if job.metadata and job.metadata.name
            ]

    async def create_deployment(self, manifest: Mapping[str, Any]) -> str:
        """Its uid."""
        with _answers():
            made = await self._api.create(Deployment.from_dict(dict(manifest)))
        return str(made.metadata.uid)

    async def scale(self, deployment: str, pods: int) -> None:
        """So many pods."""
        with _answers():
            await self._api.patch(Deployment, deployment, {"spec": {"replicas": pods}}, patch_type=PatchType.MERGE)

    async def deployments(self) -> dict[str, int]:
        """How many pods each has to have of those that this owner, or an earlier one of its name, has made."""
        with _answers():
            found = self._api.list(Deployment, labels={OWNER: self._owner})
            return {each.metadata.name: each.spec.replicas or 0 async for each in found}

    async def why_podless(self, deployment: str) -> str:
        """What keeps the cluster from making its pods; empty: nothing that it says."""
        with _answers():
            found = await self._api.get(Deployment, deployment)
        conditions = (found.status and found.status.conditions) or ()
        return next((_words(each.message) for each in conditions if each.type == "ReplicaFailure" and each.status == "True"), "")

    async def remove_deployment(self, name: str) -> None:
        """With all that it owns, and kills its pods; what is not there is fine."""
        with _answers(), _fine_if_gone():
            await self._api.delete(Deployment, name, cascade=CascadeType.BACKGROUND)
        for pod in await self.pods_of(name, GROUP):
            await self.remove_pod(pod)

    async def change_pod(self, pod: str, change: Mapping[str, Any]) -> None:
        """One that is not there is fine."""
        with _answers(), _fine_if_gone():
            await self._api.patch(Pod, pod, dict(change), patch_type=PatchType.MERGE)

    async def remove_pod(self, pod: str, *, seconds: int = KILL_SECONDS) -> None:
        """One that is not there is fine."""
        with _answers(), _fine_if_gone():
            await self._api.delete(Pod, pod, grace_period=seconds)

    async def pods(self) -> tuple[str, list[Pod]]:
        """All of this owner, and the version from which to watch."""
        with _answers():
            listing = self._api.list(Pod, labels={OWNER: self._owner})
            found = [pod async for pod in listing]
            return str(listing.resourceVersion), found

    async def watch_pods(self, version: str) -> AsyncIterator[tuple[str, Pod]]:
        """Changes of them since; ends or raises Transient when it has to be begun anew."""
        try:
            with _answers():
                async for change, pod in self._api.watch(Pod, labels={OWNER: self._owner}, resource_version=version):
                    yield change, pod
        except LaunchError as gone:
            raise Transient(str(gone)) from gone

    async def warning_of(self, uid: str) -> str:
        """The last that the cluster says of what it cannot do with a Job or a pod; empty: nothing."""
        with _answers():
            fields = {"involvedObject.uid": uid, "type": "Warning"}
            said = [event.message or "" async for event in self._api.list(Event, fields=fields)]
        return _words(said[-1]) if said else ""

    async def remove(self, name: str, *, seconds: int = KILL_SECONDS) -> None:
        """Deletes the Job, with all that it owns, and kills its pod; what is not there is fine. 0 seconds: without waiting for its node."""
        with _answers(), _fine_if_gone():
            await self._api.delete(Job, name, cascade=CascadeType.BACKGROUND)
        for pod in await self.pods_of(name):
            await self.remove_pod(pod, seconds=seconds)

    async def pods_of(self, name: str, label: str = LAUNCH) -> dict[str, str]:
        """Their uids by their names."""
        with _answers():
            return {pod.metadata.name: pod.metadata.uid async for pod in self._api.list(Pod, labels={label: name})}

    async def gone(self, name: str) -> bool:
        """Whether nothing of it is left, after up to a minute."""
        try:
            async with asyncio.timeout(GONE_SECONDS):
                while await self.pods_of(name):  # noqa: ASYNC110 (nobody follows it any more)
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return False
        return True

    @property
    def _api(self) -> Any:  # Its overloads know no plain dicts of labels.
        if self._client is None:
            raise Transient("the launcher is not started")
        return self._client


def _words(said: str | None) -> str:
    return " ".join((said or "").split())[:MAX_WORDS]


@contextmanager
def _fine_if_gone() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status.code != 404:
            raise
