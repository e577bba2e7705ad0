"""The gRPC server that every service stands behind: default-deny, validated, traced, with errors in words.

Knows method options (`access`, `rules`) and identities; not what the methods do.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from lepton.common.v1 import options_pb2
from libs.errors import AppError, Forbidden, Replay, Unauthenticated
from libs.rpc.call import Call, enter_call
from libs.rpc.identity import Identity, Verifier
from libs.rpc.names import enum_name_by_number
from libs.rpc.problem import TRAILER, trailer_of
from libs.rpc.rules import validate
from libs.rpc.settings import TlsSettings
from libs.rpc.tls import CertificateFiles, server_credentials
from libs.telemetry import histogram

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_METADATA_BYTES = 64 * 1024
# A connection so old takes no more calls, and its client connects anew: perhaps to a replica that was not there before.
CONNECTION_AGE_SECONDS = 300.0
# Between saying that it is about to stop and stopping, at the least.
DRAIN_SECONDS = 0.3
# A servicer and the generated function that adds it, e.g. (DataServicer(…), add_DataServiceServicer_to_server).
Registration = tuple[Any, Callable[[Any, Any], None]]

_UNIX = "unix:"
# The stubs type extensions as plain fields.
_ACCESS: Any = options_pb2.access
# Kernel limit of a socket's path, less its closing zero.
_UNIX_PATH_BYTES = 107
_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("libs.rpc")
_duration = histogram("lepton_rpc_duration_seconds", "From a call to its answer, or a stream's end.", ("service", "method", "code"))


class Server:
    """A lifecycle component. `listen` is "unix:/path" or "host:port"; port 0 takes a free one, which `address` names after start().

    `tls` is for TCP: a socket in a folder is its owner's alone anyway.
    """

    def __init__(
        self,
        listen: str,
        services: Sequence[Registration],
        *,
        verifier: Verifier,
        tls: TlsSettings | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        connection_age_seconds: float = CONNECTION_AGE_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.address = listen
        self._drain_seconds = drain_seconds
        self._listen = listen
        self._services = services
        self._verifier = verifier
        self._tls = tls or TlsSettings()
        self._options = _options(max_message_bytes, connection_age_seconds)
        self._health = HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listens; raises OSError with the address in words where that cannot be done."""
        server = grpc.aio.server(options=self._options)
        collector = _Collector(self._verifier)
        for servicer, add_to_server in self._services:
            add_to_server(servicer, collector)
        for name, handlers in collector.handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
            server.add_registered_method_handlers(name, handlers)
        # Health and reflection are open: they say no more than that the service is there and what its proto says.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [*collector.handlers, "grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server)
        self.address = self._bind(server)
        await server.start()
        self._server = server
        for name in ("", *collector.handlers):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float = 5.0) -> None:
        """Takes nothing new at once; what is being answered has `grace` seconds, then is cancelled."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        if grace and not self._listen.startswith(_UNIX):
            # Calls that are on their way arrive; those who send them hear of it meanwhile.
            await asyncio.sleep(min(self._drain_seconds, grace))
        await self._server.stop(grace)
        self._server = None
        if self._listen.startswith(_UNIX):
            _remove(self._listen.removeprefix(_UNIX))

    def _bind(self, server: grpc.aio.Server) -> str:
        path = self._listen.removeprefix(_UNIX) if self._listen.startswith(_UNIX) else ""
        if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
            raise OSError(f"the socket path {path} is longer than {_UNIX_PATH_BYTES} bytes; choose a shorter folder")
        try:
            if self._tls and not path:
                port = server.add_secure_port(self._listen, server_credentials(CertificateFiles(self._tls)))
            else:
                port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: it is taken or not allowed") from error
        if path:
            os.chmod(path, 0o600)
            return self._listen
        return f"{self._listen.rpartition(':')[0]}:{port}"


@dataclass(frozen=True, slots=True)
class _Method:
    """What is known of a method before anybody calls it. `least_role` None: refused to everybody; 0: for services only."""

    path: str
    service: str
    name: str
    least_role: int | None
    least_role_name: str

    @property
    def short_service(self) -> str:
        """As the services are called elsewhere: "training" of lepton.training.v1.TrainingService."""
        return self.service.split(".")[1]


class _Collector:
    """Stands in for a grpc server while the generated code registers handlers, and wraps each of them."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.handlers: dict[str, dict[str, grpc.RpcMethodHandler]] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The registered handlers are the same ones."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        descriptor = descriptor_pool.Default().FindServiceByName(service)
        self.handlers[service] = {
            name: _wrap(_method(descriptor.methods_by_name[name]), handler, self._verifier) for name, handler in handlers.items()
        }


def _method(descriptor: MethodDescriptor) -> _Method:
    options = descriptor.GetOptions()
    least_role: int | None = None
    if options.HasExtension(_ACCESS):
        least_role = options.Extensions[_ACCESS].role
    role_name = enum_name_by_number(options_pb2.Role.DESCRIPTOR).get(least_role or 0, "")
    service = descriptor.containing_service.full_name
    return _Method(f"{service}/{descriptor.name}", service, descriptor.name, least_role, role_name)


def _wrap(method: _Method, handler: grpc.RpcMethodHandler, verifier: Verifier) -> grpc.RpcMethodHandler:
    if handler.request_streaming:
        raise ValueError(f"{method.path}: streams of requests are not supported; put bytes into the artifact store")

    async def unary(request: Any, context: grpc.aio.ServicerContext) -> Any:
        with _answering(method, context) as failure:
            try:
                _admit(method, request, context, verifier)
                return await handler.unary_unary(request, context)
            except Replay as replay:
                return replay.response
            except Exception as error:
                problem = failure(error)
            return await _abort(context, problem)

    async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        with _answering(method, context) as failure:
            try:
                _admit(method, request, context, verifier)
                async for response in handler.unary_stream(request, context):
                    yield response
                return
            except Exception as error:
                problem = failure(error)
            await _abort(context, problem)

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, _serialize)


def _serialize(response: Any) -> bytes:
    """A message, or bytes that were a message when the request was first answered."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def _admit(method: _Method, request: Any, context: grpc.aio.ServicerContext, verifier: Verifier) -> None:
    """Lets the caller in and the request through, or raises; makes the call the current one."""
    metadata = _metadata(context)
    identity = verifier.verify(metadata.get("authorization", "").removeprefix("Bearer "), method.service)
    _authorise(method, identity)
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    enter_call(Call(identity, method.path, metadata.get("idempotency-key", ""), deadline))
    trace.get_current_span().set_attributes({"lepton.workspace": identity.workspace, "lepton.caller": identity.service})
    validate(request)


def _authorise(method: _Method, identity: Identity) -> None:
    if method.least_role is None:
        raise Forbidden(f"{method.name} is open to nobody: its contract does not say who may call it")
    if not identity.service:
        raise Unauthenticated("no service is named by the caller's token")
    if method.least_role == options_pb2.ROLE_UNSPECIFIED:
        return
    if not identity.workspace:
        raise Unauthenticated(f"{method.name} needs a caller in a workspace")
    if identity.role < method.least_role:
        have = enum_name_by_number(options_pb2.Role.DESCRIPTOR).get(identity.role, "none")
        raise Forbidden(
            f"this needs the role {method.least_role_name} or higher in workspace {identity.workspace}; the key has the role {have}",
            meta={"role": have, "needed": method.least_role_name},
        )


@contextmanager
def _answering(method: _Method, context: grpc.aio.ServicerContext) -> Iterator[Callable[[Exception], AppError]]:
    """The server span, and the function that turns whatever was raised into an error for the caller."""
    parent = propagate.extract(_metadata(context), context=Context())
    attributes = {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.name}
    with (
        _timed(method) as ended,
        _tracer.start_as_current_span(
            method.path, context=parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span,
    ):

        def failure(error: Exception) -> AppError:
            problem = _problem_of(method, error)
            ended(problem.entry.grpc)
            if problem.entry.grpc == "INTERNAL":
                _log.error("rpc_failed", method=method.path, exc_info=error)
            if problem.entry.http >= 500:
                span.set_status(StatusCode.ERROR, problem.code)
            span.set_attribute("lepton.error", problem.code)
            return problem

        yield failure


@contextmanager
def _timed(method: _Method) -> Iterator[Callable[[str], None]]:
    """Measures the call; the function takes its status where that is not OK."""
    started, code = time.perf_counter(), "OK"

    def ended(status: str) -> None:
        nonlocal code
        code = status

    try:
        yield ended
    except BaseException:
        # Of its own accord a call ends with a status; this one was broken off.
        code = "CANCELLED" if code == "OK" else code
        raise
    finally:
        _duration.record(time.perf_counter() - started, service=method.short_service, method=method.name, code=code)


def _problem_of(method: _Method, error: Exception) -> AppError:
    if isinstance(error, AppError):
        return error
    if isinstance(error, NotImplementedError):
        return AppError(f"{method.name} is not offered", code="unimplemented")
    return AppError("the platform made a mistake; the trace id finds it in the logs")


async def _abort(context: Any, error: AppError) -> NoReturn:
    status = grpc.StatusCode[error.entry.grpc]
    await context.abort(status, error.detail[:1000], trailing_metadata=((TRAILER, trailer_of(error)),))
    raise AssertionError("abort returned")


def _metadata(context: grpc.aio.ServicerContext) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _options(max_message_bytes: int, connection_age_seconds: float) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        # Two servers on one port would share its calls in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # Clients ping idle connections; that is no reason to hang up on them.
        ("grpc.http2.max_ping_strikes", 0),
        # A client whose machine is gone holds no stream for ever.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # What is under way on an old connection, a stream above all, ends there in its own time.
        ("grpc.max_connection_age_ms", int(connection_age_seconds * 1000)),
    ]


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
