"""The Open Inference Protocol V2 for one model: its metadata, and tensors to rows and back. Knows no HTTP but one header's number."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from libs.errors import Invalid, near
from libs.modelkit.raw import Raw
from libs.modelkit.runtime import Runtime
from libs.modelkit.signature import Field
from services.deployment.replica.problems import dump
from services.deployment.replica.tensors import BinaryReader, Tensor, bad, read_tensor, to_binary, to_json

_DATATYPES = {"double": "FP64", "integer": "INT64", "boolean": "BOOL", "string": "BYTES", "image": "UINT8"}
SERVER = {"name": "lepton", "version": "2", "extensions": ["binary_tensor_data"]}


class Protocol:
    """Reads infer requests for `runtime` and writes their answers."""

    def __init__(self, runtime: Runtime, name: str, version: str) -> None:
        self.runtime, self.name, self.version = runtime, name, version
        self._fields = {field.name: field for field in runtime.signature.inputs}
        self._outputs = [self._describe_output(field) for field in runtime.signature.outputs]

    def metadata(self) -> dict[str, Any]:
        """Of the model: inputs and outputs with -1 for the number of rows."""
        inputs = [
            {"name": field.name, "datatype": _DATATYPES[field.type], "shape": [-1, *field.shape] if field.shape else [-1, 1]}
            for field in self._fields.values()
        ]
        versions = {"versions": [self.version]} if self.version else {}
        return {"name": self.name, **versions, "platform": f"lepton_{self.runtime.engine}", "inputs": inputs, "outputs": self._outputs}

    def read(self, body: bytes, json_length: int | None) -> tuple[dict[str, Any], Raw]:
        """The request's JSON and its rows. `json_length`: where the binary extension's bytes begin, if it is used."""
        if json_length is not None and not 0 < json_length <= len(body):
            raise bad("Inference-Header-Content-Length", f"it says {json_length}, and the body has {len(body)} bytes")
        request = parse(body[:json_length])
        inputs = request.get("inputs")
        if not isinstance(inputs, list):
            raise bad("inputs", '"inputs" is missing or not a list')
        outputs = request.get("outputs")
        if outputs is not None and not (isinstance(outputs, list) and all(isinstance(item, dict) for item in outputs)):
            raise bad("outputs", '"outputs" is not a list of objects')
        binary = BinaryReader(memoryview(body)[json_length:] if json_length is not None else b"")
        tensors = {}
        for data in inputs:
            tensor = read_tensor(data, binary)
            tensors[tensor.name] = tensor
        binary.finish()
        return request, self._rows(tensors)

    def write(self, request: Mapping[str, Any], answers: NDArray[np.float64]) -> tuple[bytes, int | None]:
        """The answer's body, and the length of its JSON where bytes follow it."""
        wanted, everything_binary = self._wanted(request)
        tensors = {tensor.name: tensor for tensor in self._tensors(answers)}
        outputs, tail = [], []
        for name, binary in wanted.items():
            if everything_binary if binary is None else binary:
                head, content = to_binary(tensors[name])
                outputs.append(head)
                tail.append(content)
            else:
                outputs.append(to_json(tensors[name]))
        answer: dict[str, Any] = {"model_name": self.name, "outputs": outputs}
        if self.version:
            answer["model_version"] = self.version
        if request.get("id") is not None:
            answer["id"] = str(request["id"])
        head_bytes = dump(answer)
        return head_bytes + b"".join(tail), len(head_bytes) if tail else None

    def check_outputs(self, request: Mapping[str, Any]) -> None:
        """Before any work is done: raises `Invalid` for an output that there is none of."""
        self._wanted(request)

    def _rows(self, tensors: Mapping[str, Tensor]) -> Raw:
        for name in tensors:
            if name not in self._fields:
                close = near(name, self._fields)
                hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(list(self._fields)[:20])}"
                raise bad(name, f"the model has no input '{name[:60]}'; {hint}")
        columns = {field.name: _column(field, tensors[field.name]) for field in self._fields.values() if field.name in tensors}
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) > 1:
            raise bad("inputs", f"inputs differ in their number of rows: {dict(list(counts.items())[:5])}")
        rows = next(iter(counts.values()), 0)
        if not self._fields.keys() - columns.keys() and (fast := self._numbers(columns)) is not None:
            return fast
        names = list(columns)
        cells = zip(*(_values(column) for column in columns.values()), strict=True)
        records = [dict(zip(names, row, strict=True)) for row in cells] if rows else []
        if not records:
            raise bad("inputs", "there are no rows")
        return self.runtime.read(records)

    def _numbers(self, columns: Mapping[str, NDArray[Any]]) -> Raw | None:
        """All inputs are finite numbers: no need to go by way of records."""
        if not all(field.type in ("double", "integer") for field in self._fields.values()):
            return None
        numbers = np.column_stack([columns[name].astype(np.float64) for name in self._fields])
        return Raw(numbers, {}) if len(numbers) and np.isfinite(numbers).all() else None

    def _wanted(self, request: Mapping[str, Any]) -> tuple[dict[str, bool | None], bool]:
        """Outputs asked for, each with whether as bytes (None: not said), and whether bytes are the rule."""
        parameters = request.get("parameters")
        rule = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
        names = [output["name"] for output in self._outputs]
        if not request.get("outputs"):
            return dict.fromkeys(names), rule
        wanted: dict[str, bool | None] = {}
        for item in request["outputs"]:
            if item.get("name") not in names:
                raise bad("outputs", f"the model has no output {str(item.get('name'))[:60]!r}; there are: {', '.join(names)}")
            own = item.get("parameters")
            wanted[item["name"]] = own.get("binary_data") if isinstance(own, dict) else None
        return wanted, rule

    def _tensors(self, answers: NDArray[np.float64]) -> list[Tensor]:
        labels = self.runtime.labels
        if not labels:
            return [Tensor("prediction", "FP64", answers)]
        best = np.array(labels, object)[answers.argmax(axis=1)] if len(answers) else np.empty(0, object)
        return [Tensor("prediction", "BYTES", best), Tensor("probabilities", "FP64", answers)]

    def _describe_output(self, field: Field) -> dict[str, Any]:
        bytes_ = field.name == "prediction" and bool(self.runtime.labels)
        described: dict[str, Any] = {"name": field.name, "datatype": "BYTES" if bytes_ else "FP64", "shape": [-1, *field.shape]}
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
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise bad(field.name, f"shape {list(array.shape)} does not fit; it takes [N] or [N, 1]")
    kinds = {"double": "iuf", "integer": "iuf", "boolean": "b", "string": "O"}[field.type]
    if array.dtype.kind not in kinds:
        raise bad(field.name, f"datatype {tensor.datatype} does not fit; it takes {_DATATYPES[field.type]}")
    return array.reshape(-1)


def _values(column: NDArray[Any]) -> list[Any]:
    return column.tolist() if column.ndim == 1 else list(column)
