"""Tensors of the Open Inference Protocol V2 and their bytes: JSON data nested or flat, and the binary extension. Knows no model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid, Violation

TYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_MAX_CELLS = 64 << 20
_MAX_SIDES = 32


@dataclass(frozen=True)
class Tensor:
    """A named tensor; BYTES as an object array of str."""

    name: str
    datatype: str
    array: NDArray[Any]


def read_tensor(data: Any, binary: "BinaryReader") -> Tensor:
    """One of a request's inputs; raises `Invalid` in words."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise bad("inputs", 'each input is an object with "name", "shape", "datatype" and "data"')
    name, datatype, shape = data["name"], data.get("datatype"), data.get("shape")
    cells = count_cells(name, datatype, shape)
    assert isinstance(datatype, str) and isinstance(shape, list)
    parameters = data.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        flat = from_bytes(binary.take(size, name), datatype, cells, name)
    elif "data" in data:
        flat = from_values(data["data"], datatype, name)
    else:
        raise bad(name, "there is neither data nor parameters.binary_data_size")
    return shaped(name, datatype, shape, flat)


def count_cells(name: str, datatype: Any, shape: Any) -> int:
    """How many elements the tensor has; raises `Invalid` for a datatype or shape that there is not."""
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in TYPES):
        raise bad(name, f"datatype {str(datatype)[:40]!r} is not among {', '.join([*TYPES, 'BYTES'])}")
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side >= 0 for side in shape):
        raise bad(name, "shape is not a list of whole numbers, such as [2, 1]")
    cells = 1
    for side in shape:
        cells *= side
        # A side of 0 hides what stands beside it, and NumPy takes no more than 32 sides everywhere.
        if max(cells, side) > _MAX_CELLS or len(shape) > _MAX_SIDES:
            raise bad(name, f"shape {shape[:8]} has too many elements")
    return cells


def shaped(name: str, datatype: str, shape: list[int], flat: NDArray[Any]) -> Tensor:
    cells = math.prod(shape)
    if flat.size != cells:
        raise bad(name, f"shape {shape} asks for {cells} elements, and data has {flat.size}")
    return Tensor(name, datatype, flat.reshape(shape))


class BinaryReader:
    """The raw bytes behind a request's JSON, taken in the order of its inputs."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0

    def take(self, size: Any, name: str) -> bytes:
        if type(size) is not int or size < 0 or self._at + size > len(self._content):
            raise bad(
                name, f"binary_data_size {str(size)[:20]} does not fit the {len(self._content) - self._at} bytes that follow the JSON"
            )
        self._at += size
        return bytes(self._content[self._at - size : self._at])

    def finish(self) -> None:
        if self._at != len(self._content):
            raise bad("inputs", f"{len(self._content) - self._at} bytes follow that no input's binary_data_size claims")


def from_bytes(content: bytes, datatype: str, cells: int, name: str) -> NDArray[Any]:
    """Flat, from little-endian bytes."""
    if datatype == "BYTES":
        return _strings(_split(content, cells, name), name)
    kind = np.dtype(TYPES[datatype]).newbyteorder("<")
    if len(content) != cells * kind.itemsize:
        raise bad(name, f"{cells} elements of {datatype} are {cells * kind.itemsize} bytes, and there are {len(content)}")
    return np.frombuffer(content, kind)


def _split(content: bytes, cells: int, name: str) -> list[bytes]:
    """BYTES elements: each its length in 4 bytes, little-endian, and then itself."""
    found: list[bytes] = []
    at = 0
    while at < len(content) and len(found) <= cells:
        size = int.from_bytes(content[at : at + 4], "little")
        if at + 4 + size > len(content):
            raise bad(name, "a BYTES element is longer than its binary data")
        found.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def from_values(data: Any, datatype: str, name: str) -> NDArray[Any]:
    """Flat, from a list that is nested or not; raises `Invalid` for values that the datatype does not have."""
    if datatype == "BYTES":
        flat: list[Any] = []
        _flatten(data, flat)
        return _strings(flat, name)
    if datatype == "UINT8" and type(data) is list and data and type(data[0]) is int:
        try:
            return np.frombuffer(bytes(data), np.uint8)  # pixels, flat: ten times as fast
        except (ValueError, TypeError):
            pass  # the slower way says why, or finds them nested
    try:
        array = np.asarray(data)
        if array.size == 0:
            return np.empty(0, TYPES[datatype])
        wanted = "b" if datatype == "BOOL" else "iuf" if datatype.startswith("FP") else "iu"
        if array.dtype.kind not in wanted:
            raise bad(name, f"data holds other values than {datatype}")
        low, high = _BOUNDS.get(datatype, (-np.inf, np.inf))
        if datatype in _BOUNDS and not low <= int(array.min()) <= int(array.max()) <= high:
            raise bad(name, f"data has values beyond {datatype}")
        return array.astype(TYPES[datatype]).reshape(-1)
    except (ValueError, OverflowError, RecursionError) as error:
        raise bad(name, "data is not a list of numbers, nested by the shape or flat") from error


_BOUNDS = {
    name: (int(limits.min), int(limits.max)) for name, kind in TYPES.items() if "INT" in name for limits in [np.iinfo(np.dtype(kind))]
}


def _flatten(data: Any, into: list[Any], depth: int = 0) -> None:
    if isinstance(data, list) and depth < 8:
        for item in data:
            _flatten(item, into, depth + 1)
    else:
        into.append(data)


def _strings(items: list[Any], name: str) -> NDArray[np.object_]:
    array = np.empty(len(items), object)
    for index, item in enumerate(items):
        try:
            array[index] = item.decode() if isinstance(item, bytes) else item
        except UnicodeDecodeError as error:
            raise bad(name, f"element {index} is not UTF-8") from error
        if not isinstance(array[index], str):
            raise bad(name, f"element {index} is not a text")
    return array


def to_json(tensor: Tensor) -> dict[str, Any]:
    """An output with its data in JSON, flat."""
    return {"name": tensor.name, "shape": list(tensor.array.shape), "datatype": tensor.datatype, "data": tensor.array.reshape(-1).tolist()}


def to_binary(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """An output with its data as bytes that follow the JSON."""
    content = to_bytes(tensor)
    head = {"name": tensor.name, "shape": list(tensor.array.shape), "datatype": tensor.datatype}
    return {**head, "parameters": {"binary_data_size": len(content)}}, content


def to_bytes(tensor: Tensor) -> bytes:
    """Little-endian, row by row; a text begins with its length in 4 bytes."""
    if tensor.datatype == "BYTES":
        encoded = [item.encode() for item in tensor.array.reshape(-1)]
        return b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
    return np.ascontiguousarray(tensor.array, np.dtype(TYPES[tensor.datatype]).newbyteorder("<")).tobytes()


def bad(field: str, message: str) -> Invalid:
    return Invalid.of([Violation(field, message)], code="invalid_record")
