"""The gRPC client by which a service calls another one: on behalf of the current call, within its time, in its trace."""

import json
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

DEFAULT_TIMEOUT_SECONDS = 10.0
# Kept back of the current call's time, for telling the caller what went wrong.
_MARGIN_SECONDS = 0.05
# Verbs that change nothing, and those whose comments in the proto promise that the same request again does nothing more.
_SAFE_VERBS = ("Get", "List", "Preview", "Watch", "Authenticate", "Resolve")
_REPEATABLE_VERBS = ("Reserve", "Release", "Renew", "Register", "Record", "Cancel")
_CODE_BY_STATUS = {
    "CANCELLED": "unavailable",
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "deadline_exceeded",
    "RESOURCE_EXHAUSTED": "too_large",
    "UNIMPLEMENTED": "unimplemented",
    "UNAUTHENTICATED": "unauthenticated",
}
_tracer = trace.get_tracer("libs.rpc")


class Client:
    """Methods of a stub as coroutines, server streams as async iterators:

        data = Client(DataServiceStub, "unix:/run/data.sock", signer)
        dataset = await data.GetDataset(GetDatasetRequest(name="wdbc"))

    Every method takes `timeout` (seconds; never more than the current call has left) and `idempotency_key`. Raises AppError
    subclasses, as the other side raised them; Transient when it cannot be reached ("unavailable") or is too slow
    ("deadline_exceeded"). Connects on first use, in the loop that uses it.
    """

    def __init__(
        self,
        stub: Callable[[Any], Any],
        address: str,
        signer: Signer,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._address = address
        self._signer = signer
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._methods: dict[str, _Method] = dict(vars(stub(_Recorder())))
        self._service = next(iter(self._methods.values())).path.split("/")[1]
        self._channel: grpc.aio.Channel | None = None

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
        if self._channel is not None:
            channel, self._channel = self._channel, None
            for name in self._methods:
                self.__dict__.pop(name, None)
            await channel.close()

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=_options(self._service, self._max_message_bytes))
        return self._channel

    def _unary(self, method: "_Method") -> Callable[..., Awaitable[Any]]:
        send = self._connected().unary_unary(method.path, **method.codec)

        async def call(request: Any, timeout: float | None = None, *, idempotency_key: str = "") -> Any:
            with self._calling(method) as metadata:
                if idempotency_key:
                    metadata["idempotency-key"] = idempotency_key
                return await send(request, timeout=self._time_for(method, timeout or self._timeout), metadata=tuple(metadata.items()))

        return call

    def _stream(self, method: "_Method") -> Callable[..., AsyncIterator[Any]]:
        send = self._connected().unary_stream(method.path, **method.codec)

        async def stream(request: Any, timeout: float | None = None, *, idempotency_key: str = "") -> AsyncIterator[Any]:
            with self._calling(method) as metadata:
                if idempotency_key:
                    metadata["idempotency-key"] = idempotency_key
                call = send(request, timeout=self._time_for(method, timeout), metadata=tuple(metadata.items()))
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
        metadata["authorization"] = f"Bearer {self._signer.sign(current_call().identity)}"
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


def _options(service: str, max_message_bytes: int) -> list[tuple[str, Any]]:
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
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", _service_config(service)),
    ]


def _service_config(service: str) -> str:
    methods = descriptor_pool.Default().FindServiceByName(service).methods
    names = [{"service": service, "method": method.name} for method in methods if _is_repeatable(method)]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]} if names else {})


def _is_repeatable(method: MethodDescriptor) -> bool:
    """By the proto's own `idempotency_level` where it is stated, else by the verb."""
    return method.GetOptions().idempotency_level != 0 or method.name.startswith(_SAFE_VERBS + _REPEATABLE_VERBS)
