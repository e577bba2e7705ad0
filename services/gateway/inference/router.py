"""From an endpoint's name to a replica's answer: finds replicas, draws a revision by its share, picks the least busy one.

Knows nothing of what is in the bytes.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog

from lepton.deployment.v1 import deployment_service_pb2
from libs.errors import AppError, Transient
from libs.rpc import Call, Client, acting
from libs.telemetry import inject
from services.gateway.inference.connection import Address, BrokenOff, Pool, Reply, Unanswered
from services.gateway.inference.shadow import differs, tensors_differ
from services.gateway.inference.traffic import Traffic
from services.gateway.problems import RPC
from services.gateway.remembered import Remembered

RESOLVED_SECONDS = 1.0
# While deployment cannot be asked, what it said last holds.
STALE_SECONDS = 600.0
# How long one question waits for an endpoint that starts; it is asked again until the request's own time is over.
STARTING_SECONDS = 30.0
# So many replicas may be gone with a request in hand; those that were not reached don't count.
ATTEMPTS = 3
SHADOWS_AT_ONCE, SHADOW_SECONDS = 32, 10.0
# Of deployment, beyond the waiting that it was asked for.
_ANSWER_SECONDS = 5.0
_PASSED_ON = (b"content-type", b"accept", b"inference-header-content-length")
_log = structlog.get_logger(__name__)

Key = tuple[str, str]


class NoReplica(AppError):
    """Deployment says that none is ready."""


class Asked(NamedTuple):
    """One request, whichever replica gets it; a call over gRPC is one of its own path."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes = b""

    @property
    def predicts(self) -> bool:
        """Not so what asks about a model."""
        return self.path.endswith(("/predict", "/infer", "/ModelInfer"))


@dataclass(frozen=True, slots=True)
class Replica:
    """Where it listens, and what every request to it begins with."""

    id: str
    revision: int
    address: Address
    head: bytes


@dataclass(frozen=True, slots=True)
class Resolved:
    """An endpoint's ready replicas by revision, and each revision's share of the requests."""

    replicas: Mapping[int, list[Replica]]
    revisions: list[int]
    percents: list[int]
    shadow: int | None = None

    @property
    def serving(self) -> list[Replica]:
        """Those of all revisions, but for a shadow's."""
        return [replica for revision, some in self.replicas.items() if revision != self.shadow for replica in some]


class Router:
    """A lifecycle component."""

    def __init__(self, deployment: Client, traffic: Traffic, *, seconds: float = 60.0) -> None:
        self._deployment = deployment
        self._traffic = traffic
        self.seconds = seconds
        self._resolved: Remembered[Key, Resolved] = Remembered(self._resolve, fresh_seconds=RESOLVED_SECONDS, stale_seconds=STALE_SECONDS)
        self._busy: Counter[str] = Counter()
        self._pool = Pool()
        self._shadows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Keeps connections to replicas from now on."""
        await self._pool.start()

    async def stop(self) -> None:
        """Closes them."""
        for task in self._shadows:
            task.cancel()
        await self._pool.stop()
        self._resolved.stop()

    async def send(self, workspace: str, endpoint: str, asked: Asked, *, seconds: float | None = None, current: bool = False) -> Reply:
        """The answer of one replica; of another one where a connection broke before any byte of it.

        Waits for the first replica of an endpoint that starts or sleeps. `current`: by the replicas that are ready now, not a moment ago.
        Raises NotFound, Conflict, Transient.
        """
        seconds = self.seconds if seconds is None else min(seconds, self.seconds)
        until = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._try((workspace, endpoint), asked, until, current)
        except TimeoutError:
            raise Transient(f"endpoint '{endpoint}' did not answer within {seconds:g} s", code="deadline_exceeded") from None

    async def _try(self, key: Key, asked: Asked, until: float, current: bool) -> Reply:
        tried: set[str] = set()
        sent = failures = 0
        while True:
            resolved = None if current else self._resolved.now(key)
            if resolved is None:
                resolved = await self._find(key, current, until)
            replica = self._pick(resolved, tried)
            try:
                reply = await self._ask(key, replica, asked, until)
                if resolved.shadow is not None and asked.predicts:
                    self._copy(key, random.choice(resolved.replicas[resolved.shadow]), asked, reply)
                return reply
            except Unanswered as error:
                _log.warning("replica_unreachable", workspace=key[0], endpoint=key[1], replica=replica.id, error=str(error))
                sent, failures = sent + error.sent, failures + 1
            # It may be what kills them.
            if sent >= ATTEMPTS:
                raise Transient(f"no replica of endpoint '{key[1]}' answers; they are being replaced, try again in a moment")
            tried.add(replica.id)
            current = True
            # Those that are left are asked at once; where none is, the next one takes a moment.
            if all(each.id in tried for each in resolved.serving):
                await asyncio.sleep(min(1.0, 0.05 * failures))

    def _pick(self, resolved: Resolved, tried: set[str]) -> Replica:
        revisions = resolved.revisions
        revision = revisions[0] if len(revisions) == 1 else random.choices(revisions, resolved.percents)[0]
        of_revision = resolved.replicas[revision]
        if len(of_revision) == 1 and not tried:
            return of_revision[0]
        others = [each for each in of_revision if each.id not in tried]
        others = others or [each for each in resolved.serving if each.id not in tried] or of_revision
        return min(others, key=lambda replica: (self._busy[replica.id], random.random()))

    async def _ask(self, key: Key, replica: Replica, asked: Asked, until: float) -> Reply:
        parts = [_head(replica, asked, until), asked.body] if asked.body else [_head(replica, asked, until)]
        self._busy[replica.id] += 1
        watch = self._traffic.begin(key, replica.revision)

        def leave() -> None:
            watch.leave()
            self._busy[replica.id] -= 1
            if self._busy[replica.id] <= 0:
                del self._busy[replica.id]

        reply = None
        try:
            reply = await self._pool.ask(replica.address, parts)
            if reply.status in (401, 403):
                # Not the caller's key is wrong, but what we believe of the replica.
                raise Unanswered("the replica does not know its token")
            if reply.status == 503 and reply.headers.get(b"connection") == b"close":
                raise Unanswered("the replica is leaving")
            watch.end(failed=reply.status >= 500)
            return reply
        except BrokenOff as error:
            watch.end(failed=True)
            raise AppError("the replica broke off in the middle of its answer; try again", code="upstream_failed") from error
        finally:
            if reply is not None and reply.stream is not None:
                reply.stream.on_end = leave
            else:
                leave()

    def _copy(self, key: Key, shadow: Replica, asked: Asked, reply: Reply) -> None:
        """Asks the shadow revision too, where it keeps up; nobody waits for it."""
        if reply.status != 200 or reply.stream is not None or len(self._shadows) >= SHADOWS_AT_ONCE:
            return
        task = asyncio.create_task(self._compare(key, shadow, asked, reply))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(self, key: Key, shadow: Replica, asked: Asked, reply: Reply) -> None:
        try:
            async with asyncio.timeout(SHADOW_SECONDS):
                other = await self._ask(key, shadow, asked, time.monotonic() + SHADOW_SECONDS)
        except (Unanswered, AppError, TimeoutError):
            self._traffic.compared(key, shadow.revision, differs=True)
        else:
            compare = tensors_differ if asked.path.startswith(RPC) else differs
            self._traffic.compared(key, shadow.revision, differs=other.status != 200 or compare(reply.body, other.body))

    async def _find(self, key: Key, current: bool, until: float) -> Resolved:
        self._traffic.wait(key, 1)
        try:
            while True:
                try:
                    return await self._resolved.get(key, current=current)
                except NoReplica:
                    # It is still starting: what was held is held on.
                    if time.monotonic() > until:
                        raise
        finally:
            self._traffic.wait(key, -1)

    async def _resolve(self, key: Key) -> Resolved:
        """Waits for a first replica, but not where others answered just now: those are asked meanwhile."""
        workspace, endpoint = key
        wait = 0.0 if self._resolved.knows(key) else STARTING_SECONDS
        request = deployment_service_pb2.ResolveEndpointRequest(workspace=workspace, name=endpoint, wait_seconds=wait)
        asked = time.monotonic()
        try:
            with acting(Call()):
                answer = await self._deployment.ResolveEndpoint(request, timeout=wait + _ANSWER_SECONDS)
        except Transient as error:
            if error.code == "deadline_exceeded" and time.monotonic() - asked < wait + _ANSWER_SECONDS / 2:
                raise NoReplica(error.detail, code="deadline_exceeded") from error
            raise
        if not answer.replicas:
            raise NoReplica(
                f"endpoint '{endpoint}' has no ready replica yet; GET /v1/endpoints/{endpoint} says why", code="deadline_exceeded"
            )
        return _read(answer)


def _head(replica: Replica, asked: Asked, until: float) -> bytes:
    lines = [b"%s %s HTTP/1.1\r\n" % (asked.method.encode(), asked.path.encode()), replica.head]
    lines += [b"%s: %s\r\n" % (name, asked.headers[name]) for name in _PASSED_ON if name in asked.headers]
    lines += [f"{name}: {value}\r\n".encode() for name, value in inject().items()]
    left = max(1, int((until - time.monotonic()) * 1000))
    lines.append(b"x-lepton-deadline-ms: %d\r\ncontent-length: %d\r\n\r\n" % (left, len(asked.body)))
    return b"".join(lines)


def _read(answer: deployment_service_pb2.ResolveEndpointResponse) -> Resolved:
    by_revision: dict[int, list[Replica]] = {}
    for each in answer.replicas:
        parts = urlsplit(each.url)
        assert parts.hostname and parts.port
        head = f"host: {parts.netloc}\r\nx-lepton-replica-token: {each.token}\r\n".encode()
        by_revision.setdefault(each.revision, []).append(Replica(each.id, each.revision, (parts.hostname, parts.port), head))
    shares = {share.revision: share.percent for share in answer.shares if share.percent and share.revision in by_revision}
    shadow = next((share.revision for share in answer.shares if share.shadow and share.revision in by_revision), None)
    shares = shares or {revision: len(some) for revision, some in by_revision.items() if revision != shadow}
    return Resolved(by_revision, list(shares), list(shares.values()), shadow)
