"""The model package: a folder of model.json, weights.safetensors and (where outputs are equal) model.onnx. Nothing in it can run code.

Read with bounds and checks, because packages travel: to other workspaces, to edge devices, and back.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import Invalid
from libs.modelkit.preprocessing import Preprocessing
from libs.modelkit.signature import Signature, describe
from libs.modelkit.spec import ARCHITECTURES, TASKS, check_model
from libs.modelkit.target import Target

FORMAT = 1
MODEL, WEIGHTS, ONNX = "model.json", "weights.safetensors", "model.onnx"
MAX_MODEL_BYTES = 64 << 20
_KEYS = ("format", "task", "architecture", "params", "dtype", "preprocessing", "target")


@dataclass(frozen=True)
class Package:
    """A model that was read or is to be written. `dtype` is what it computes in: "float32" or "float64"."""

    task: str
    architecture: str
    params: Mapping[str, Any]
    dtype: str
    preprocessing: Preprocessing
    target: Target
    metrics: Mapping[str, float]
    folder: Path

    @property
    def signature(self) -> Signature:
        return describe(self.preprocessing.inputs, self.target.classes)

    @property
    def onnx(self) -> Path | None:
        """The ONNX file, where there is one."""
        path = self.folder / ONNX
        return path if path.is_file() else None

    def as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "task": self.task,
            "architecture": self.architecture,
            "params": dict(self.params),
            "dtype": self.dtype,
            "signature": self.signature.as_json(),
            "preprocessing": self.preprocessing.data,
            "target": self.target.data,
            "classes": self.target.classes,
            "metrics": dict(self.metrics),
        }


def write(package: Package, weights: Mapping[str, NDArray[Any]]) -> None:
    """Writes model.json and weights.safetensors into `package.folder`, weights first, each whole or not at all."""
    from safetensors.numpy import save

    package.folder.mkdir(parents=True, exist_ok=True)
    write_file(package.folder / WEIGHTS, save(dict(weights)))
    write_file(package.folder / MODEL, json.dumps(package.as_json(), allow_nan=False).encode())


def read(folder: Path) -> Package:
    """Raises `Invalid` where the folder holds no model package that this code can serve."""
    data = read_json(folder)
    _check(data)
    try:
        preprocessing, target = Preprocessing(data["preprocessing"]), Target(data["target"])
        shape = preprocessing.shape
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _broken(f"preprocessing or target in {MODEL} is incomplete: {error}") from error
    if not all(0 < side <= 1 << 20 for side in shape):
        raise _broken(f"a row would have the shape {shape}")
    return Package(
        data["task"], data["architecture"], data["params"], data["dtype"], preprocessing, target, data.get("metrics") or {}, folder
    )


def read_json(folder: Path) -> dict[str, Any]:
    """What model.json says, of whatever format; raises `Invalid` where there is none."""
    path = folder / MODEL
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise _broken(f"{MODEL} is larger than {MAX_MODEL_BYTES >> 20} MiB")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(f"{MODEL} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise _broken(f"{MODEL} is no object")
    return data


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors by name from a .safetensors file; raises `Invalid` where it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _broken(f"{path.name} cannot be read: {error}") from error


def count_parameters(weights: Mapping[str, NDArray[Any]]) -> int:
    return int(sum(np.size(tensor) for tensor in weights.values()))


def write_file(path: Path, content: bytes) -> None:
    """Whole, or not at all, and still there after the power went: temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _check(data: Mapping[str, Any]) -> None:
    if data.get("format", FORMAT) != FORMAT:
        raise _broken(f"its format is {data['format']}, and this version reads {FORMAT}")
    if any(key not in data for key in _KEYS):
        raise _broken(f"{MODEL} lacks one of {', '.join(_KEYS)}")
    if data["task"] not in TASKS or data["architecture"] not in ARCHITECTURES or data["dtype"] not in ("float32", "float64"):
        raise _broken("task, architecture or dtype is unknown")
    errors = check_model(data["task"], data["architecture"], data["params"])
    if errors:
        raise Invalid.of(errors, code="invalid_data")


def _broken(detail: str) -> Invalid:
    return Invalid(f"this is not a model package that can be served: {detail}", code="invalid_data")
