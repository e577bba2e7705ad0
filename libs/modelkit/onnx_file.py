"""What an ONNX file says it takes and gives, read without ONNX: a walk over its protobuf fields that keeps names, types and shapes alone.

Source: onnx.proto3 of ONNX IR version 13. Files that name others, operators of strangers, and what cannot be served are refused in words.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from libs.errors import Invalid
from libs.modelkit.signature import Field, Signature

MAX_OPSET = {"": 23, "ai.onnx.ml": 5}
_DOMAINS = {"": "", "ai.onnx": "", "ai.onnx.ml": "ai.onnx.ml"}
_MAX_FIELDS = 500_000
_MAX_DEPTH = 16
_MAX_NAME = 256
# TensorProto.DataType, as far as records and answers have such values.
_TYPES = {1: "double", 2: "integer", 3: "integer", 4: "integer", 5: "integer", 6: "integer", 7: "integer", 8: "string", 9: "boolean"}
_TYPES |= {10: "double", 11: "double", 12: "integer"}
# Numbers of fields in the messages.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_KIND, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14

Span = tuple[int, int]
Value = Span | int


@dataclass
class _Graph:
    inputs: dict[str, Field] = field(default_factory=dict)
    outputs: dict[str, Field] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)


def read_onnx(path: Path) -> Signature:
    """The signature of the file. Raises `Invalid` in words where it is no ONNX model that the platform serves."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).signature()
    except (ValueError, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(f"it is cut off or damaged ({error})") from error


class _Reader:
    """`left` bounds the work, whatever lengths the file claims."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._left = _MAX_FIELDS

    def signature(self) -> Signature:
        graph, opsets = None, 0
        for number, value in self._fields((0, len(self._content))):
            if number == _MODEL_FUNCTIONS:
                _refuse("it brings functions of its own; export it with operators of ONNX alone")
            if number == _MODEL_OPSET:
                self._require_opset(value)
                opsets += 1
            if number == _MODEL_GRAPH:
                graph = self._graph(value, 0)
        if graph is None or not opsets:
            _refuse("it has no graph, or no opset")
        inputs = tuple(each for name, each in graph.inputs.items() if name not in graph.weights)
        if not inputs or not graph.outputs:
            _refuse("it takes nothing, or gives nothing")
        return Signature(inputs, tuple(graph.outputs.values()))

    def _require_opset(self, span: Value) -> None:
        parts = dict(self._fields(span))
        domain, version = self._text(parts.get(1)), parts.get(2, 0)
        if domain not in _DOMAINS:
            _refuse(f"it needs the operators '{domain}', which are not those of ONNX")
        most = MAX_OPSET[_DOMAINS[domain]]
        if not isinstance(version, int) or not 1 <= version <= most:
            _refuse(f"its opset is {version} of '{domain or 'ai.onnx'}'; up to {most} is taken")

    def _graph(self, span: Value, depth: int) -> _Graph:
        if depth > _MAX_DEPTH:
            _refuse(f"its graphs are nested deeper than {_MAX_DEPTH}")
        graph = _Graph()
        for number, value in self._fields(span):
            if number == _GRAPH_NODE:
                self._node(value, depth)
            elif number == _GRAPH_INITIALIZER:
                graph.weights.add(self._tensor(value))
            elif number == _GRAPH_SPARSE:
                _refuse("it has sparse weights; export it with dense ones")
            elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT) and depth == 0:
                found = graph.inputs if number == _GRAPH_INPUT else graph.outputs
                parts = dict(self._fields(value))
                name = self._text(parts.get(1))
                if not 0 < len(name) <= _MAX_NAME or name in found or len(found) >= 1000:
                    _refuse(f"the name '{name[:60]}' of an input or output is empty, too long or there twice")
                found[name] = self._value(name, parts.get(2))
        return graph

    def _node(self, span: Value, depth: int) -> None:
        for number, value in self._fields(span):
            if number == _NODE_DOMAIN and (domain := self._text(value)) not in _DOMAINS:
                _refuse(f"it has an operator of '{domain}', which is not one of ONNX")
            if number == _NODE_ATTRIBUTE:
                for kind, part in self._fields(value):
                    if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                        self._graph(part, depth + 1)
                    elif kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                        self._tensor(part)

    def _tensor(self, span: Value) -> str:
        name = ""
        for number, value in self._fields(span):
            if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
                _refuse("its weights are in another file (external data); save it as one file")
            if number == _TENSOR_NAME:
                name = self._text(value)
        return name

    def _value(self, name: str, span: Value | None) -> Field:
        tensor = dict(self._fields(span)).get(1) if isinstance(span, tuple) else None
        if not isinstance(tensor, tuple):
            _refuse(f"'{name}' is no tensor; export it with tensors alone (scikit-learn: zipmap=False)")
        parts = dict(self._fields(tensor))
        kind = parts.get(1)
        if kind not in _TYPES:
            _refuse(f"'{name}' has an element type ({kind}) that records cannot have")
        sides = [self._side(value) for number, value in self._fields(parts[2]) if number == 1] if isinstance(parts.get(2), tuple) else []
        if not sides or sides[0] > 1 or any(not 0 < side <= 1 << 20 for side in sides[1:]) or len(sides) > 9:
            _refuse(f"'{name}' has the shape {sides or '[]'} (0: any); only its first side, the rows, may and has to be free, or 1")
        shape = tuple(sides[1:])
        return Field(name, _TYPES[kind], shape=() if shape == (1,) else shape)

    def _side(self, span: Value) -> int:
        """0 where any size fits."""
        value = dict(self._fields(span)).get(1, 0)
        return value if isinstance(value, int) and value < 1 << 31 else 0

    def _text(self, span: Value | None) -> str:
        if not isinstance(span, tuple):
            return ""
        if span[1] - span[0] > 4096:
            _refuse("one of its names has more than 4096 bytes")
        return self._content[span[0] : span[1]].decode()

    def _fields(self, span: Value) -> Iterator[tuple[int, Value]]:
        """Number and value of each field: whole numbers, and spans of what has a length; numbers of fixed size are passed over."""
        if isinstance(span, int):
            raise ValueError("a number stands where a part belongs")
        at, end = span
        while at < end:
            self._left -= 1
            if self._left < 0:
                _refuse(f"it has more than {_MAX_FIELDS} parts")
            key, at = self._varint(at, end)
            kind = key & 7
            if kind == 0:
                value, at = self._varint(at, end)
                yield key >> 3, value
            elif kind == 2:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise ValueError("a part is longer than the whole")
                yield key >> 3, (at, at + length)
                at += length
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise ValueError("it is no protobuf")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("it ends within a number")
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("a number has no end")


def _refuse(why: str) -> NoReturn:
    raise _refusal(why)


def _refusal(why: str) -> Invalid:
    return Invalid(f"model.onnx cannot be served: {why}", code="invalid_data")
