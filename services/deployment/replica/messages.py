"""The inference protocol's messages, as gRPC carries them: bytes to rows, answers to bytes. Knows no transport."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from libs.errors import Invalid, NotFound
from libs.inference import REQUESTS, RESPONSES, SERVICE
from libs.modelkit.raw import Raw
from services.deployment.replica.oip import SERVER, Asked, Protocol
from services.deployment.replica.tensors import Tensor, bad, count_cells, from_bytes, from_values, shaped, to_bytes

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

Message = Any  # made from a descriptor


class Messages:
    """Of one model. `is_ready` says whether it takes requests. Raises Invalid and NotFound for what is wrong with one."""

    def __init__(self, protocol: Protocol, is_ready: Callable[[], bool]) -> None:
        self._protocol, self._is_ready = protocol, is_ready

    def look(self, method: str, body: bytes) -> bytes:
        """The answer of each method but ModelInfer."""
        request = _parse(method, body)
        if method.startswith("Model"):
            self._require_model(request.name, request.version)
        say: Mapping[str, Callable[[], Mapping[str, Any]]] = {
            "ServerLive": lambda: {"live": True},
            "ServerReady": lambda: {"ready": self._is_ready()},
            "ServerMetadata": lambda: SERVER,
            "ModelReady": lambda: {"ready": self._is_ready()},
            "ModelMetadata": self._metadata,
        }
        return bytes(RESPONSES[method](**say[method]()).SerializeToString())

    def read(self, body: bytes) -> tuple[Asked, Raw]:
        """What is asked, and its rows."""
        request = _parse("ModelInfer", body)
        self._require_model(request.model_name, request.model_version)
        raw = bool(request.raw_input_contents)
        asked = self._protocol.ask(request.id or None, dict.fromkeys((output.name for output in request.outputs), raw), raw)
        return asked, self._protocol.rows(_read(request))

    def write(self, asked: Asked, answers: NDArray[Any]) -> bytes:
        """As it was asked: with raw contents, or with typed ones."""
        response = RESPONSES["ModelInfer"](model_name=self._protocol.name, model_version=self._protocol.version, id=asked.id or "")
        for tensor in self._protocol.outputs(asked, answers):
            output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
            if asked.binary:
                response.raw_output_contents.append(to_bytes(tensor))
            else:
                values = _values(tensor.array)
                getattr(output.contents, _CONTENTS[tensor.datatype]).extend(values)
        return bytes(response.SerializeToString())

    def _metadata(self) -> dict[str, Any]:
        metadata = self._protocol.metadata()
        for side in ("inputs", "outputs"):
            metadata[side] = [{key: tensor[key] for key in ("name", "datatype", "shape")} for tensor in metadata[side]]
        return metadata

    def _require_model(self, name: str, version: str) -> None:
        protocol = self._protocol
        if name != protocol.name or version not in ("", protocol.version):
            raise NotFound(f"there is no model {name[:100]} {version[:20]} here; there is {protocol.name} {protocol.version}".rstrip())


def _parse(method: str, body: bytes) -> Message:
    try:
        return REQUESTS[method].FromString(body)
    except DecodeError:
        raise Invalid(f"this is no message of {SERVICE}/{method}") from None


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
