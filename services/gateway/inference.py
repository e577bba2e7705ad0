"""From an endpoint's name to a replica's answer: finds replicas, picks the least busy one, passes bytes both ways.

Knows nothing of what is in the bytes.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import structlog
from opentelemetry import propagate

from lepton.deployment.v1 import deployment_service_pb2
from libs.errors import AppError, Transient
from libs.rpc import Call, Client, acting
from services.gateway.cache import TtlCache

RESOLVED_SECONDS = 1.0
# How long an endpoint that starts is waited for.
STARTING_SECONDS = 30.0
ATTEMPTS = 3
_CONNECT_SECONDS = 2.0
_LARGEST_ANSWER = 64 << 20
_PASSED_ON = ("content-type", "accept", "inference-header-content-length")
_PASSED_BACK = ("content-type", "inference-header-content-length", "retry-after")
_log = structlog.get_logger(__name__)

Replica = deployment_service_pb2.ReplicaAddress
Key = tuple[str, str]


@dataclass(frozen=True)
class Answer:
    """What a replica said. `rows` are to be paid for; 0 where it refused."""

    status: int
    body: bytes
    headers: dict[str, str]
    rows: int


class Router:
    """A lifecycle component."""

    def __init__(self, deployment: Client, *, seconds: float = 60.0) -> None:
        self._deployment = deployment
        self._seconds = seconds
        self._resolved: TtlCache[Key, list[Replica]] = TtlCache(10_000)
        self._resolving: dict[Key, asyncio.Task[list[Replica]]] = {}
        self._busy: Counter[str] = Counter()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the pool of connections to replicas."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())

    async def stop(self) -> None:
        """Closes it."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for task in list(self._resolving.values()):
            task.cancel()

    async def replicas(self, workspace: str, endpoint: str, *, fresh: bool = False) -> list[Replica]:
        """At least one; waits for the first one of an endpoint that starts. Raises NotFound, Conflict, Transient."""
        key = (workspace, endpoint)
        if fresh:
            self._resolved.drop(key)
        elif (known := self._resolved.get(key)) is not None:
            return known
        task = self._resolving.get(key)
        if task is None:
            task = asyncio.create_task(self._resolve(key))
            self._resolving[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    async def send(
        self,
        workspace: str,
        endpoint: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        seconds: float | None = None,
    ) -> Answer:
        """The answer of one replica; of another one where a connection broke before any byte of it."""
        seconds = seconds or self._seconds
        until = time.monotonic() + seconds
        tried: set[str] = set()
        try:
            async with asyncio.timeout(seconds):
                for attempt in range(ATTEMPTS):
                    replica = self._pick(await self.replicas(workspace, endpoint, fresh=attempt > 0), tried)
                    try:
                        return await self._ask(replica, method, path, headers, body, until)
                    except aiohttp.ClientConnectionError as error:
                        tried.add(replica.id)
                        _log.warning("replica_unreachable", workspace=workspace, endpoint=endpoint, replica=replica.id, error=str(error))
                        await asyncio.sleep(0.1 * attempt)
        except TimeoutError:
            raise Transient(f"endpoint '{endpoint}' did not answer within {seconds:g} s", code="deadline_exceeded") from None
        raise Transient(f"no replica of endpoint '{endpoint}' can be reached; they are being replaced, try again in a moment")

    def _pick(self, replicas: list[Replica], tried: set[str]) -> Replica:
        others = [replica for replica in replicas if replica.id not in tried] or replicas
        return min(others, key=lambda replica: (self._busy[replica.id], random.random()))

    async def _ask(self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes, until: float) -> Answer:
        assert self._session is not None
        sent = {name: headers[name] for name in _PASSED_ON if name in headers}
        sent["x-lepton-replica-token"] = replica.token
        propagate.inject(sent)
        timeout = aiohttp.ClientTimeout(total=max(0.001, until - time.monotonic()), sock_connect=_CONNECT_SECONDS)
        self._busy[replica.id] += 1
        try:
            async with self._session.request(
                method, replica.url.rstrip("/") + path, data=body or None, headers=sent, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status in (401, 403):
                    # Not the caller's key is wrong, but what we believe of the replica.
                    raise aiohttp.ClientConnectionError("the replica does not know its token")
                return await self._read(response)
        finally:
            self._busy[replica.id] -= 1
            if self._busy[replica.id] <= 0:
                del self._busy[replica.id]

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        try:
            content = await response.content.read(_LARGEST_ANSWER + 1) if response.content_length is None else await response.read()
            while response.content_length is None and len(content) <= _LARGEST_ANSWER and not response.content.at_eof():
                content += await response.content.read(_LARGEST_ANSWER + 1 - len(content))
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
            raise AppError("the replica broke off in the middle of its answer; try again", code="upstream_failed") from error
        if len(content) > _LARGEST_ANSWER:
            raise AppError("the replica's answer is too large", code="upstream_failed")
        headers = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
        return Answer(response.status, content, headers, _rows(response))

    async def _resolve(self, key: Key) -> list[Replica]:
        workspace, endpoint = key
        request = deployment_service_pb2.ResolveEndpointRequest(workspace=workspace, name=endpoint, wait_seconds=STARTING_SECONDS)
        with acting(Call()):
            answer = await self._deployment.ResolveEndpoint(request, timeout=STARTING_SECONDS + 5)
        replicas = list(answer.replicas)
        if not replicas:
            raise Transient(f"endpoint '{endpoint}' has no ready replica yet; GET /v1/endpoints/{endpoint} says why")
        self._resolved.put(key, replicas, RESOLVED_SECONDS)
        return replicas

    def _finished(self, key: Key, task: asyncio.Task[list[Replica]]) -> None:
        if self._resolving.get(key) is task:
            del self._resolving[key]
        # Nobody may be left to hear of a failure.
        if not task.cancelled():
            task.exception()


def _rows(response: aiohttp.ClientResponse) -> int:
    if not 200 <= response.status < 300:
        return 0
    rows = response.headers.get("x-lepton-rows", "")
    if not rows.isdecimal():
        _log.error("replica_did_not_count", rows=rows)
        return 1
    return int(rows)
