"""The gRPC client by which a service calls another one: on behalf of the current call, within its time, in its trace."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode

from lepton.common.v1 import problem_pb2
from libs.errors import AppError, Transient
from libs.rpc.call import current_call
from libs.rpc.identity import Signer
from libs.rpc.problem import TRAILER, error_class, from_problem
from libs.rpc.server import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from libs.rpc.settings import TlsSettings
from libs.rpc.tls import CertificateFiles, channel_credentials

DEFAULT_TIMEOUT_SECONDS = 10.0
# Kept back of the current call's time, for telling the caller what went wrong.
_MARGIN_SECONDS = 0.05
# A service may be between two replicas: no address is known to answer, and another one is about to be.
PATIENCE_SECONDS = 5.0
# What is under way over a connection with old certificates may take so long.
_RETIRED_SECONDS = 600.0
# Verbs that change nothing, and those whose comments in the proto promise that the same request again does nothing more.
_SAFE_VERBS = ("Get", "List", "Preview", "Watch", "Authenticate", "Resolve")
_REPEATABLE_VERBS = ("Reserve", "Release", "Renew", "Register", "Record", "Cancel")
_UNIX = "unix:"
# What names its addresses by itself; anything else is a host's name.
_SCHEMES = (_UNIX, "dns:", "ipv4:", "ipv6:")
_CODE_BY_STATUS = {
    "CANCELLED": "unavailable",
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "deadline_exceeded",
    "RESOURCE_EXHAUSTED": "too_large",
    "UNIMPLEMENTED": "unimplemented",
    "UNAUTHENTICATED": "unauthenticated",
}
_READY, _AWAY = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
_tracer = trace.get_tracer("libs.rpc")


class Client:
    """Methods of a stub as coroutines, server streams as async iterators:

        data = Client(DataServiceStub, "unix:/run/data.sock", signer)
        dataset = await data.GetDataset(GetDatasetRequest(name="wdbc"))

    Every method takes `timeout` (seconds; never more than the current call has left) and `idempotency_key`. Raises AppError
    subclasses, as the other side raised them; Transient when it cannot be reached ("unavailable") or is too slow
    ("deadline_exceeded"). Connects on first use, in the loop that uses it.

    Calls to "host:port" are spread over all addresses that the host's name stands for; `tls` is for those. Where none of them
    answers just now, a call waits a moment before it is sent; while the service stays away, none does.
    """

    def __init__(
        self,
        stub: Callable[[Any], Any],
        address: str,
        signer: Signer,
        *,
        tls: TlsSettings | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._address = address
        self._signer = signer
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._methods: dict[str, _Method] = dict(vars(stub(_Recorder())))
        self._service = next(iter(self._methods.values())).path.split("/")[1]
        self._certificates = CertificateFiles(tls) if tls and not address.startswith(_UNIX) else None
        self._channel: grpc.aio.Channel | None = None
        self._senders: dict[str, Callable[..., Any]] = {}
        self._was_ready = False
        self._away_since: float | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        method = self.__dict__.get("_methods", {}).get(name)
        if method is None:
            raise AttributeError(name)
        bound = self._stream(method) if method.streams else self._unary(method)
        # Found directly from now on.
        self.__dict__[name] = bound
        return bound

    async def ready(self, timeout: float = 1.0) -> bool:
        """Whether the other side says that it serves."""
        request = health_pb2.HealthCheckRequest(service=self._service)
        try:
            answer = await health_pb2_grpc.HealthStub(self._connected()).Check(request, timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Ends what is under way."""
        self._senders.clear()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _connected(self) -> grpc.aio.Channel:
        if self._certificates is not None and self._certificates.renewed() and self._channel is not None:
            self._retire(self._channel)
            self._channel = None
        if self._channel is None:
            options = _options(self._service, self._address, self._max_message_bytes)
            if self._certificates is None:
                self._channel = grpc.aio.insecure_channel(_target(self._address), options=options)
            else:
                credentials = channel_credentials(self._certificates.current)
                self._channel = grpc.aio.secure_channel(_target(self._address), credentials, options=options)
            self._senders.clear()
            self._was_ready = False
        return self._channel

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.create_task(channel.close(_RETIRED_SECONDS))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _sender(self, method: "_Method") -> Callable[..., Any]:
        channel = self._connected()
        sender = self._senders.get(method.path)
        if sender is None:
            make = channel.unary_stream if method.streams else channel.unary_unary
            sender = self._senders[method.path] = make(method.path, **method.codec)
        return sender

    async def _is_near(self) -> bool:
        """Whether the service answers, or is just between two replicas: waits for the next one, but never long, and never twice."""
        channel = self._connected()
        if self._address.startswith(_UNIX):
            return False
        state = channel.get_state()
        if state is _READY:
            self._was_ready, self._away_since = True, None
            return True
        # The first way of all is quick.
        if not (self._was_ready or state is _AWAY):
            return False
        if self._away_since is None:
            self._away_since = time.monotonic()
        left = self._away_since + PATIENCE_SECONDS - time.monotonic()
        remaining = current_call().remaining()
        try:
            async with asyncio.timeout(max(0.0, left if remaining is None else min(left, remaining - 2 * _MARGIN_SECONDS))):
                while (state := channel.get_state(try_to_connect=True)) not in (_READY, grpc.ChannelConnectivity.SHUTDOWN):
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            return False  # The call itself says so.
        self._away_since = None
        return True

    def _unary(self, method: "_Method") -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, timeout: float | None = None, *, idempotency_key: str = "") -> Any:
            with self._calling(method) as metadata:
                if idempotency_key:
                    metadata["idempotency-key"] = idempotency_key
                near = await self._is_near()
                send, time_left = self._sender(method), self._time_for(method, timeout or self._timeout)
                # Where the last replica leaves between that look and this line, the call waits for the next one.
                return await send(request, timeout=time_left, metadata=tuple(metadata.items()), wait_for_ready=near)

        return call

    def _stream(self, method: "_Method") -> Callable[..., AsyncIterator[Any]]:
        async def stream(request: Any, timeout: float | None = None, *, idempotency_key: str = "") -> AsyncIterator[Any]:
            with self._calling(method) as metadata:
                if idempotency_key:
                    metadata["idempotency-key"] = idempotency_key
                await self._is_near()
                call = self._sender(method)(request, timeout=self._time_for(method, timeout), metadata=tuple(metadata.items()))
                try:
                    async for response in call:
                        yield response
                finally:
                    call.cancel()

        return stream

    @contextmanager
    def _calling(self, method: "_Method") -> Iterator[dict[str, str]]:
        """The client span; yields metadata with trace context and identity; translates what gRPC raises."""
        attributes = {"rpc.system": "grpc", "rpc.service": self._service, "rpc.method": method.name}
        # Not made the current span: a stream's consumer runs between its items, and its work is no part of the call.
        span = _tracer.start_span(method.path[1:], kind=SpanKind.CLIENT, attributes=attributes)
        metadata: dict[str, str] = {}
        propagate.inject(metadata, context=trace.set_span_in_context(span))
        metadata["authorization"] = f"Bearer {self._signer.sign(current_call().identity, self._service)}"
        try:
            yield metadata
        except grpc.aio.AioRpcError as error:
            problem = _app_error(error, self._service)
            span.set_attribute("lepton.error", problem.code)
            if problem.entry.http >= 500:
                span.set_status(StatusCode.ERROR, problem.code)
            raise problem from error
        finally:
            span.end()

    def _time_for(self, method: "_Method", timeout: float | None) -> float | None:
        remaining = current_call().remaining()
        if remaining is None:
            return timeout
        remaining -= _MARGIN_SECONDS
        if remaining <= 0:
            raise Transient(f"no time was left to ask {method.path[1:]}", code="deadline_exceeded")
        return remaining if timeout is None else min(timeout, remaining)


@dataclass(frozen=True, slots=True)
class _Method:
    path: str
    streams: bool
    codec: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class _Recorder:
    """Stands in for a channel while the generated stub registers its methods."""

    def unary_unary(self, path: str, **codec: Any) -> _Method:
        return _Method(path, False, codec)

    def unary_stream(self, path: str, **codec: Any) -> _Method:
        return _Method(path, True, codec)


def _app_error(error: grpc.aio.AioRpcError, service: str) -> AppError:
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER and isinstance(value, bytes):
            return from_problem(problem_pb2.Problem.FromString(value))
    status = error.code().name
    code = _CODE_BY_STATUS.get(status, "internal")
    part = service.split(".")[1] if service.count(".") > 1 else service
    words = {
        "unavailable": f"the {part} service cannot be reached; try again in a moment",
        "deadline_exceeded": f"the {part} service did not answer in time; try again in a moment",
        "too_large": f"a message to or from the {part} service is too large",
    }
    return error_class(code)(words.get(code, f"the {part} service answered {status}"), code=code)


def _target(address: str) -> str:
    return address if address.startswith(_SCHEMES) else f"dns:///{address}"


def _options(service: str, address: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A service that starts again is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # So is one whose name stands for other addresses now.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", _service_config(service, spread=not address.startswith(_UNIX))),
    ]


def _service_config(service: str, *, spread: bool) -> str:
    methods = descriptor_pool.Default().FindServiceByName(service).methods
    names = [{"service": service, "method": method.name} for method in methods if _is_repeatable(method)]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, Any] = {
        "methodConfig": [{"name": names, "retryPolicy": retry}] if names else [],
        # Of a service that fails nearly every call, calls are not made several times: it has enough to do.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
    if spread:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        # A server that is about to stop says so before it does: the next call goes to another one.
        config["healthCheckConfig"] = {"serviceName": service}
    return json.dumps(config)


def _is_repeatable(method: MethodDescriptor) -> bool:
    """By the proto's own `idempotency_level` where it is stated, else by the verb."""
    return method.GetOptions().idempotency_level != 0 or method.name.startswith(_SAFE_VERBS + _REPEATABLE_VERBS)
