"""Streams of the inference protocol over gRPC: each message becomes a request of its own, one for a text by the generate extension.

Knows messages and events; no socket and no metadata.
"""

import struct
from collections.abc import Iterator
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from libs.errors import Invalid, Violation
from libs.inference import REQUESTS, RESPONSES
from services.gateway.problems import RPC

STREAM = "ModelStreamInfer"
_TEXT, _ANSWER = "text_input", "text_output"
_NUMBERS = {"INT32": "<i", "INT64": "<q", "UINT32": "<I", "UINT64": "<Q", "FP32": "<f", "FP64": "<d"}
_INPUTS = (_TEXT, "max_tokens", "temperature", "stop", "stream")
# Triton's own; what begins so is not the model's.
_OURS, _WANTS_FINAL, _FINAL = "triton_", "triton_enable_empty_final_response", "triton_final_response"

Message = Any  # made from a descriptor


class Turn:
    """One message of a stream: `path` and `body` of the request that it becomes. `read` makes messages of its answer."""

    def __init__(self, message: bytes) -> None:
        """Raises Invalid."""
        try:
            request = REQUESTS["ModelInfer"].FromString(message)
        except DecodeError:
            raise Invalid("this is no ModelInferRequest of the inference protocol") from None
        self.id = str(request.id)
        self.path, self.body = f"{RPC}ModelInfer", message
        self._wants_final = _WANTS_FINAL in request.parameters and request.parameters[_WANTS_FINAL].bool_param
        self._writes = any(tensor.name == _TEXT for tensor in request.inputs)
        self._events = False
        self._left = b""
        if self._writes:
            self._ask(request)

    def read(self, part: bytes) -> Iterator[bytes]:
        """Of an answer's part; of all but an answer in events it is the whole."""
        if not self._writes:
            yield self._say(RESPONSES["ModelInfer"].FromString(part), final=True)
        elif not self._events:
            yield self._piece(orjson.loads(part), final=True)
        else:
            *events, self._left = (self._left + part).split(b"\n\n")
            for event in events:
                said = orjson.loads(event.removeprefix(b"data: "))
                yield failed(said["error"], self.id) if "error" in said else self._piece(said, final=False)

    def end(self) -> Iterator[bytes]:
        """Once all of a good answer was read."""
        if self._events and self._wants_final:
            yield self._say(RESPONSES["ModelInfer"](id=self.id), final=True)

    def _ask(self, request: Message) -> None:
        if not request.model_name:
            raise _wrong("model_name", "it must be the name of an endpoint")
        given = {name: _parameter(each) for name, each in request.parameters.items() if not name.startswith(_OURS)}
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise _wrong("raw_input_contents", f"there are {len(raw)} for {len(request.inputs)} inputs; each has one, or none has")
        for at, tensor in enumerate(request.inputs):
            if tensor.name not in _INPUTS:
                raise _wrong(tensor.name[:100], f"a text takes {', '.join(_INPUTS)}")
            given[tensor.name] = _value(tensor, raw[at] if raw else None)
        self._events = bool(given.pop("stream", True))
        version = f"/versions/{request.model_version}" if request.model_version else ""
        self.path = f"/v2/models/{request.model_name}{version}/generate{'_stream' if self._events else ''}"
        self.body = orjson.dumps({_TEXT: given.pop(_TEXT), "parameters": given})

    def _piece(self, said: dict[str, Any], *, final: bool) -> bytes:
        text = said[_ANSWER].encode()
        response = RESPONSES["ModelInfer"](model_name=said["model_name"], model_version=said["model_version"], id=self.id)
        response.outputs.add(name=_ANSWER, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(struct.pack("<I", len(text)) + text)
        return self._say(response, final=final)

    def _say(self, response: Message, *, final: bool) -> bytes:
        if self._wants_final:
            response.parameters[_FINAL].bool_param = final
        return bytes(RESPONSES[STREAM](infer_response=response).SerializeToString())


def failed(words: str, request_id: str = "") -> bytes:
    """What says that a request was not answered, or not to its end."""
    return bytes(RESPONSES[STREAM](error_message=words, infer_response=RESPONSES["ModelInfer"](id=request_id)).SerializeToString())


def _parameter(each: Message) -> Any:
    kind = each.WhichOneof("parameter_choice")
    return getattr(each, kind) if kind else None


def _value(tensor: Message, raw: bytes | None) -> Any:
    """The one element of a tensor; of `stop` a list of all of them."""
    elements = _contents(tensor) if raw is None else _elements(tensor, raw)
    if tensor.name == "stop":
        return elements
    if len(elements) != 1:
        raise _wrong(tensor.name, f"it has {len(elements)} elements; a request is about one text")
    return elements[0]


def _contents(tensor: Message) -> list[Any]:
    filled = [list(values) for _, values in tensor.contents.ListFields()]
    return [_text(tensor.name, each) if isinstance(each, bytes) else each for values in filled for each in values]


def _elements(tensor: Message, raw: bytes) -> list[Any]:
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, raw)
    if tensor.datatype == "BOOL":
        return [each != 0 for each in raw]
    form = _NUMBERS.get(tensor.datatype)
    if form is None or len(raw) % struct.calcsize(form):
        raise _wrong(tensor.name, f"{len(raw)} bytes are no {tensor.datatype[:20]}; there are BYTES, BOOL, {', '.join(_NUMBERS)}")
    return [each for (each,) in struct.iter_unpack(form, raw)]


def _texts(name: str, raw: bytes) -> list[str]:
    found, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw) or at + 4 + (size := int.from_bytes(raw[at : at + 4], "little")) > len(raw):
            raise _wrong(name, "an element of BYTES begins with its length in 4 bytes, little-endian, and has so many bytes then")
        found.append(_text(name, raw[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _wrong(name, "it is no UTF-8") from None


def _wrong(where: str, words: str) -> Invalid:
    return Invalid.of([Violation(where, words)], code="invalid_request")
