"""The Open Inference Protocol V2 for one model: its metadata, and tensors to rows and back. Knows no HTTP but one header's number."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from libs.errors import AppError, Invalid, near
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.raw import Raw
from libs.modelkit.runtime import Runtime
from libs.modelkit.signature import Field
from services.deployment.replica.batching import Statistics, Sum
from services.deployment.replica.problems import dump
from services.deployment.replica.tensors import TYPES, BinaryReader, Tensor, bad, read_tensor, to_binary, to_json

# One tensor [N, columns] instead of one for each column, where all columns are numbers and none has this name.
ROWS = "rows"
_DATATYPES = {"double": "FP64", "integer": "INT64", "boolean": "BOOL", "string": "BYTES", "image": "UINT8"}
SERVER = {"name": "lepton", "version": "2", "extensions": ["binary_tensor_data", "model_repository", "statistics"]}
_PLAIN = itemgetter("name", "datatype", "shape", "data")
_PLAIN_BINARY = itemgetter("name", "datatype", "shape", "parameters")
_NUMBERS = {int, float}
_FLOATS: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an answer has to be like. `wanted`: outputs by name, and whether as bytes (None: by the rule `binary`)."""

    id: str | None
    wanted: Mapping[str, bool | None]
    binary: bool = False


class Protocol:
    """Reads infer requests for `runtime` and writes their answers."""

    def __init__(self, runtime: Runtime | CodeRuntime, name: str, version: str) -> None:
        self.runtime, self.name, self.version = runtime, name, version
        self._by_records = isinstance(runtime, CodeRuntime)
        signature = runtime.signature  # made anew whenever it is asked for
        self._fields = {field.name: field for field in signature.inputs}
        self._names = tuple(self._fields)
        numeric = bool(self._fields) and all(field.type in ("double", "integer") and not field.shape for field in self._fields.values())
        self._numeric = not self._by_records and numeric
        self._takes_rows = numeric and ROWS not in self._fields
        self._outputs = [self._describe_output(field) for field in signature.outputs]
        whole = bool(signature.inputs and signature.outputs) and not any(field.optional for field in signature.outputs)
        self._has_tensors = whole or not self._by_records
        self._all = dict.fromkeys(output["name"] for output in self._outputs)
        self._labels = np.array(runtime.labels, object)
        self._answer = {"model_name": name} | ({"model_version": version} if version else {})

    def metadata(self) -> dict[str, Any]:
        """Of the model: inputs and outputs with -1 for the number of rows."""
        inputs = [
            {"name": field.name, "datatype": _DATATYPES[field.type], "shape": [-1, *field.shape] if field.shape else [-1, 1]}
            for field in self._fields.values()
        ]
        versions = {"versions": [self.version]} if self.version else {}
        return {"name": self.name, **versions, "platform": f"lepton_{self.runtime.engine}", "inputs": inputs, "outputs": self._outputs}

    def index(self, *, ready: bool) -> list[dict[str, str]]:
        """Of the repository, as Triton has it: the one model."""
        state, reason = ("READY", "") if ready else ("UNAVAILABLE", "it is leaving")
        return [{"name": self.name, "version": self.version, "state": state, "reason": reason}]

    def statistics(self, counted: Statistics) -> dict[str, Any]:
        """Of the model, as Triton has them. Reading and writing tensors is not told from waiting."""
        none = _nanoseconds(Sum())
        return {
            "name": self.name,
            "version": self.version,
            "last_inference": int(counted.last * 1000),
            "inference_count": counted.rows,
            "execution_count": counted.calls,
            "inference_stats": {
                "success": _nanoseconds(counted.success),
                "fail": _nanoseconds(counted.failure),
                "queue": _nanoseconds(counted.queue),
                "compute_input": none,
                "compute_infer": _nanoseconds(counted.compute),
                "compute_output": none,
            },
            "batch_stats": [
                {"batch_size": size, "compute_input": none, "compute_infer": _nanoseconds(spent), "compute_output": none}
                for size, spent in sorted(counted.sizes.items())
            ],
        }

    def read(self, body: bytes, json_length: int | None) -> tuple[Asked, Raw]:
        """What is asked, and its rows. `json_length`: where the binary extension's bytes begin, if it is used."""
        self._require_tensors()
        if json_length is not None and not 0 < json_length <= len(body):
            raise bad("Inference-Header-Content-Length", f"it says {json_length}, and the body has {len(body)} bytes")
        request = parse(body[:json_length])
        inputs = request.get("inputs")
        if not isinstance(inputs, list):
            raise bad("inputs", '"inputs" is missing or not a list')
        asked = self._asked(request)
        content = memoryview(body)[json_length:] if json_length is not None else None
        if (plain := self._plain(inputs, content)) is not None:
            return asked, plain
        binary = BinaryReader(content or b"")
        tensors = [read_tensor(data, binary) for data in inputs]
        binary.finish()
        return asked, self.rows(tensors)

    def write(self, asked: Asked, answers: NDArray[Any]) -> tuple[bytes, int | None]:
        """The answer's body, and the length of its JSON where bytes follow it."""
        outputs: list[dict[str, Any]] = []
        tail: list[bytes] = []
        for tensor in self.outputs(asked, answers):
            binary = asked.wanted[tensor.name]
            if asked.binary if binary is None else binary:
                head, content = to_binary(tensor)
                outputs.append(head)
                tail.append(content)
            else:
                outputs.append(to_json(tensor))
        answer: dict[str, Any] = {**self._answer, "outputs": outputs}
        if asked.id is not None:
            answer["id"] = asked.id
        json = dump(answer)
        return (b"".join([json, *tail]), len(json)) if tail else (json, None)

    def rows(self, tensors: Sequence[Tensor]) -> Raw:
        """A model's inputs as rows; raises `Invalid` for one that is missing, unknown, there twice, or of another type or shape."""
        self._require_tensors()
        by_name = {tensor.name: tensor for tensor in tensors}
        if len(by_name) < len(tensors):
            raise bad("inputs", "an input is there twice")
        if self._takes_rows and ROWS in by_name and len(by_name) == 1:
            matrix = self._matrix(by_name[ROWS])
            return self._recorded(self._names, matrix.numbers.tolist()) if self._by_records else matrix
        for name in by_name:
            if name not in self._fields:
                close = near(name, self._fields)
                hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(list(self._fields)[:20])}"
                raise bad(name, f"the model has no input '{name[:60]}'; {hint}")
        columns = {field.name: _column(field, by_name[field.name]) for field in self._fields.values() if field.name in by_name}
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) > 1:
            raise bad("inputs", f"inputs differ in their number of rows: {dict(list(counts.items())[:5])}")
        if not next(iter(counts.values()), 0):
            raise bad("inputs", "there are no rows")
        if (
            not self._by_records
            and len(columns) == len(self._fields)
            and (fast := self._numbers(columns) or self._pixels(columns)) is not None
        ):
            return fast
        cells = zip(*(column.tolist() if self._by_records else _values(column) for column in columns.values()), strict=True)
        return self._recorded(list(columns), cells)

    def _recorded(self, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Raw:
        return self.runtime.read([dict(zip(names, row, strict=True)) for row in rows])

    def outputs(self, asked: Asked, answers: NDArray[Any]) -> list[Tensor]:
        """Those that are asked for, in the order asked for."""
        if self._by_records:
            return [self._gathered(name, answers) for name in asked.wanted]
        if not len(self._labels):
            return [Tensor("prediction", "FP64", answers)]
        found = []
        for name in asked.wanted:
            if name == "prediction":
                found.append(Tensor(name, "BYTES", self._labels[answers.argmax(axis=1)]))
            else:
                found.append(Tensor(name, "FP64", answers))
        return found

    def _gathered(self, name: str, answers: NDArray[Any]) -> Tensor:
        field = next(field for field in self.runtime.signature.outputs if field.name == name)
        datatype = _DATATYPES[field.type]
        values = np.array([answer[name] for answer in answers], TYPES.get(datatype, np.object_))
        return Tensor(name, datatype, values.reshape(len(answers), *field.shape))

    def ask(self, id: str | None, wanted: Mapping[str, bool | None], binary: bool) -> Asked:
        """Raises `Invalid` for an output that there is none of."""
        for name in wanted:
            if name not in self._all:
                raise bad("outputs", f"the model has no output {str(name)[:60]!r}; there are: {', '.join(self._all)}")
        return Asked(id, wanted or self._all, binary)

    def _require_tensors(self) -> None:
        if not self._has_tensors:
            words = "this model does not say what tensors it takes and gives; send records to the endpoint's /predict"
            raise AppError(words, code="unimplemented")

    def _plain(self, inputs: list[Any], content: memoryview | None) -> Raw | None:
        """The common case, every column or ROWS as numbers of one type, with no Python loop over cells; None where it is any other."""
        if not self._numeric or not inputs:
            return None
        try:
            names, types, shapes, data = zip(*map(_PLAIN if content is None else _PLAIN_BINARY, inputs), strict=True)
            kind, shape = _FLOATS.get(types[0]), shapes[0]
            # Nothing but these four keys, and the same type and shape for all.
            if kind is None or set(map(len, inputs)) != {4} or types.count(types[0]) + shapes.count(shape) != 2 * len(inputs):
                return None
            if not set(map(type, shape)) <= {int} or min(shape) < 1 or shape[1:] not in self._plain_sides(names):
                return None
            cells = math.prod(shape)
            if content is None:
                numbers = _from_json(data, cells, kind)
            elif data.count({"binary_data_size": cells * kind.itemsize}) == len(data) and len(content) == len(data) * cells * kind.itemsize:
                numbers = np.frombuffer(content, kind)
            else:
                return None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        if numbers is None:
            return None
        numbers = numbers.astype(np.float64, copy=False)
        if not math.isfinite(numbers.sum()):  # a sum may be infinite though no number is: the slower way finds out
            return None
        return Raw(numbers.reshape(len(inputs), -1).T if names == self._names else numbers.reshape(shape), {})

    def _plain_sides(self, names: tuple[str, ...]) -> tuple[list[int], ...]:
        """What may follow the number of rows in the shape of each input."""
        if names == self._names:
            return [], [1]
        return ([len(self._names)],) if names == (ROWS,) and self._takes_rows else ()

    def _matrix(self, tensor: Tensor) -> Raw:
        array = tensor.array
        if array.dtype.kind not in "iuf":
            raise bad(ROWS, f"datatype {tensor.datatype} does not fit; all columns are numbers")
        if array.ndim != 2 or array.shape[1] != len(self._names):
            raise bad(ROWS, f"shape {list(array.shape)} does not fit; it takes [N, {len(self._names)}], the model's inputs in their order")
        if not len(array):
            raise bad("inputs", "there are no rows")
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0].tolist()
            raise bad(ROWS, f"'{self._names[column]}' in row {row} is not a finite number")
        return Raw(array.astype(np.float64, copy=False), {})

    def _numbers(self, columns: Mapping[str, NDArray[Any]]) -> Raw | None:
        """All inputs are finite numbers: no need to go by way of records."""
        if not self._numeric:
            return None
        numbers = np.column_stack([columns[name] for name in self._names]).astype(np.float64, copy=False)
        return Raw(numbers, {}) if np.isfinite(numbers).all() else None

    def _pixels(self, columns: Mapping[str, NDArray[Any]]) -> Raw | None:
        """Pictures that are already of the model's size and type."""
        field, column = self._fields[self._names[0]], columns[self._names[0]]
        shapes = (field.shape, field.shape[:2]) if field.shape[2:] == (1,) else (field.shape,)
        if field.type != "image" or column.dtype != np.uint8 or column.shape[1:] not in shapes:
            return None
        return Raw(np.empty((0, 0)), {}, column.reshape(-1, *field.shape))

    def _asked(self, request: Mapping[str, Any]) -> Asked:
        id = None if request.get("id") is None else str(request["id"])
        outputs, parameters = request.get("outputs"), request.get("parameters")
        if outputs is None and parameters is None:
            return Asked(id, self._all)
        if outputs is not None and not (isinstance(outputs, list) and all(isinstance(item, dict) for item in outputs)):
            raise bad("outputs", '"outputs" is not a list of objects')
        binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
        wanted: dict[str, bool | None] = {}
        for item in outputs or ():
            own, name = item.get("parameters"), item.get("name")
            wanted[name if isinstance(name, str) else str(name)] = own.get("binary_data") if isinstance(own, dict) else None
        return self.ask(id, wanted, binary)

    def _describe_output(self, field: Field) -> dict[str, Any]:
        bytes_ = field.name == "prediction" and bool(self.runtime.labels)
        datatype = _DATATYPES[field.type] if self._by_records else "BYTES" if bytes_ else "FP64"
        described: dict[str, Any] = {"name": field.name, "datatype": datatype, "shape": [-1, *field.shape]}
        return {**described, "parameters": {"labels": list(field.categories)}} if field.categories else described


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object; raises `Invalid` for NaN, lone surrogates, deep nesting and whatever else is no JSON."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the body is not JSON: {error}", code="invalid_request") from error
    if not isinstance(data, dict):
        raise Invalid("the body is not a JSON object", code="invalid_request")
    return data


def _column(field: Field, tensor: Tensor) -> NDArray[Any]:
    """[N], or [N, ...] for pictures; accepts [N, 1] for [N]."""
    array = tensor.array
    if field.type == "image":
        if tensor.datatype == "BYTES":
            return array.reshape(-1)
        if array.ndim not in (3, 4):
            raise bad(field.name, f"shape {list(array.shape)} is not [N, height, width] or [N, height, width, channels]")
        return array
    if field.shape and array.shape[1:] != field.shape:
        raise bad(field.name, f"shape {list(array.shape)} does not fit; it takes [N, {', '.join(map(str, field.shape))}]")
    if not field.shape and (array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1)):
        raise bad(field.name, f"shape {list(array.shape)} does not fit; it takes [N] or [N, 1]")
    kinds = {"double": "iuf", "integer": "iuf", "boolean": "b", "string": "O"}[field.type]
    if array.dtype.kind not in kinds:
        raise bad(field.name, f"datatype {tensor.datatype} does not fit; it takes {_DATATYPES[field.type]}")
    return array if field.shape else array.reshape(-1)


def _values(column: NDArray[Any]) -> list[Any]:
    return column.tolist() if column.ndim == 1 else list(column)


def _nanoseconds(spent: Sum) -> dict[str, int]:
    return {"count": spent.count, "ns": int(spent.seconds * 1e9)}


def _from_json(data: Sequence[Any], cells: int, kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Flat lists of so many numbers each, one behind the other; None where they are anything else."""
    if set(map(type, data)) != {list} or set(map(len, data)) != {cells}:
        return None
    flat = data[0] if len(data) == 1 else list(chain.from_iterable(data))
    return np.array(flat, kind) if set(map(type, flat)) <= _NUMBERS else None
