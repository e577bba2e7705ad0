"""The Open Inference Protocol V2 over gRPC, beside HTTP in the same process and on the same batcher. Only this module knows grpc."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from libs.errors import AppError, NotFound, Transient, Unauthenticated
from services.deployment.replica.app import MAX_BODY, Replica, require_few
from services.deployment.replica.batching import MAX_WAITING_BYTES, Outcome
from services.deployment.replica.oip import SERVER
from services.deployment.replica.tensors import Tensor, bad, count_cells, from_bytes, from_values, shaped, to_bytes

# As wide as HTTP's bodies, with room for names and shapes. What many calls hold at once is bounded by how many there may be.
_MAX_MESSAGE = MAX_BODY + (1 << 20)
_MAX_CALLS = 256
_TOKEN = "x-lepton-replica-token"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_log = logging.getLogger("lepton.replica")

Message = Any  # made below, from a descriptor
Context = Any  # grpc.aio.ServicerContext, which has no types
Call = Callable[[Message, Context], Awaitable[Message]]


def _service() -> Any:
    """The service's descriptor, in a pool of its own: a client's types of the same names may live in this process too."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files("lepton").joinpath("inference.binpb").read_bytes()).file:
        pool.Add(file)
    return pool.FindServiceByName("inference.GRPCInferenceService")


_SERVICE = _service()
_RESPONSES: dict[str, Any] = {method.name: GetMessageClass(method.output_type) for method in _SERVICE.methods}


class InferenceServer:
    """Answers for `replica` until it is drained."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._protocol = replica, replica.protocol
        self._held = 0
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", _MAX_CALLS),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_CALLS)
        calls: dict[str, Call] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._guarded(calls[method.name]),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=_RESPONSES[method.name].SerializeToString,
            )
            for method in _SERVICE.methods
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),))

    async def start(self, host: str, port: int) -> int:
        """The port where it listens; raises OSError where it cannot."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(0, "the address is taken or not this machine's") from error
        await self._server.start()
        return int(bound)

    async def drain(self, seconds: float) -> None:
        await self._server.stop(seconds)

    def _guarded(self, call: Call) -> Call:
        """Asks for the token, and says errors as statuses."""

        async def guarded(request: Message, context: Context) -> Message:
            try:
                token = dict(context.invocation_metadata() or ()).get(_TOKEN, "")
                if not self._replica.admits(token.encode() if isinstance(token, str) else token):
                    raise Unauthenticated(f"{_TOKEN} is missing or wrong; a replica is called through its endpoint")
                return await call(request, context)
            except AppError as error:
                said = error
            except Exception as error:
                _log.error("request_failed", exc_info=error)
                said = AppError("the model could not answer; the replica's log says why")
            return await context.abort(grpc.StatusCode[said.entry.grpc], said.detail)  # raises

        return guarded

    async def _live(self, _: Message, __: Context) -> Message:
        return _RESPONSES["ServerLive"](live=True)

    async def _ready(self, _: Message, __: Context) -> Message:
        return _RESPONSES["ServerReady"](ready=not self._replica.draining)

    async def _model_ready(self, request: Message, _: Context) -> Message:
        self._require_model(request.name, request.version)
        return _RESPONSES["ModelReady"](ready=not self._replica.draining)

    async def _server_metadata(self, _: Message, __: Context) -> Message:
        return _RESPONSES["ServerMetadata"](**SERVER)

    async def _model_metadata(self, request: Message, _: Context) -> Message:
        self._require_model(request.name, request.version)
        metadata = self._protocol.metadata()
        for side in ("inputs", "outputs"):
            metadata[side] = [{key: tensor[key] for key in ("name", "datatype", "shape")} for tensor in metadata[side]]
        return _RESPONSES["ModelMetadata"](**metadata)

    async def _infer(self, request: Message, context: Context) -> Message:
        self._require_model(request.model_name, request.model_version)
        if self._replica.draining:
            raise Transient("this replica is leaving; ask again, another one answers")
        size = request.ByteSize()
        with self._holding(size):
            return await self._answer(request, context, size)

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        """A call keeps its message until it is answered; all of them together are bounded."""
        if self._held and self._held + size > MAX_WAITING_BYTES:
            raise Transient("too many large requests are in hand; try again", code="rate_limited")
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def _answer(self, request: Message, context: Context, size: int) -> Message:
        self._replica.batcher.require_room()
        raw = bool(request.raw_input_contents)
        asked = self._protocol.ask(request.id or None, dict.fromkeys((output.name for output in request.outputs), raw), raw)
        rows = self._protocol.rows(_read(request))
        require_few(rows.rows)
        remaining = context.time_remaining()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Outcome] = loop.create_future()
        deadline = math.inf if remaining is None else loop.time() + remaining
        waiting = self._replica.batcher.submit(rows, partial(_settle, answered), deadline, size)
        try:
            outcome = await answered
        finally:
            self._replica.withdraw(waiting)  # where the caller went away
        if isinstance(outcome, Exception):
            raise outcome
        context.set_trailing_metadata((("x-lepton-rows", str(rows.rows)),))
        return self._write(asked.id, self._protocol.outputs(asked, outcome), raw)

    def _write(self, id: str | None, outputs: list[Tensor], raw: bool) -> Message:
        response = _RESPONSES["ModelInfer"](model_name=self._protocol.name, model_version=self._protocol.version, id=id or "")
        for tensor in outputs:
            output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
            if raw:
                response.raw_output_contents.append(to_bytes(tensor))
            else:
                values = _values(tensor.array)
                getattr(output.contents, _CONTENTS[tensor.datatype]).extend(values)
        return response

    def _require_model(self, name: str, version: str) -> None:
        protocol = self._protocol
        if name != protocol.name or version not in ("", protocol.version):
            raise NotFound(f"there is no model {name[:100]} {version[:20]} here; there is {protocol.name} {protocol.version}".rstrip())


def _settle(answered: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not answered.done():  # the caller may have gone
        answered.set_result(outcome)


def _read(request: Message) -> list[Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad("raw_input_contents", f"there are {len(raw)} for {len(request.inputs)} inputs; each has one, or none has")
    return [_read_tensor(tensor, raw[at] if raw else None) for at, tensor in enumerate(request.inputs)]


def _read_tensor(tensor: Message, raw: bytes | None) -> Tensor:
    name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    cells = count_cells(name, datatype, shape)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is not None:
        if filled:
            raise bad(name, "there are contents beside raw_input_contents; send one of the two")
        return shaped(name, datatype, shape, from_bytes(raw, datatype, cells, name))
    field = _CONTENTS.get(datatype)
    if field is None:
        raise bad(name, f"{datatype} has no contents of its own; send raw_input_contents")
    if filled not in ([], [field]):
        raise bad(name, f"{datatype} belongs into {field}, and there is {', '.join(filled)}")
    return shaped(name, datatype, shape, from_values(list(getattr(tensor.contents, field)), datatype, name))


def _values(array: NDArray[Any]) -> list[Any]:
    flat = array.reshape(-1)
    return [item.encode() for item in flat] if flat.dtype == np.object_ else flat.tolist()
