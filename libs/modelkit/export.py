"""A torch module to ONNX, shipped only where ONNX Runtime gives the same outputs on real rows. Why this exporter: docs/adr/0003."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from libs.modelkit.onnx_session import EMBEDDING, bind, open_session
from libs.modelkit.package import ONNX, write_file

TOLERANCE = 1e-5
_OPSET = 17


def export(module: nn.Module, rows: NDArray[Any], folder: Path) -> str:
    """Writes model.onnx into `folder` if its outputs equal the module's to 1e-5 of their scale. Returns why not, "" if it did.

    rows: some preprocessed real rows, in the dtype that the module takes.
    """
    module = module.cpu().eval()
    with torch.inference_mode():
        expected = module(torch.from_numpy(rows)).numpy()
    reason = _try(module, rows, expected, folder)
    if reason and rows.dtype == np.float64:
        # ONNX Runtime has no convolution in double precision; single may still be equal enough.
        reason = _try(copy.deepcopy(module).float(), rows.astype(np.float32), expected, folder)
    return reason


def _try(module: nn.Module, rows: NDArray[Any], expected: NDArray[Any], folder: Path) -> str:
    try:
        content = to_onnx(module, torch.from_numpy(rows[:1]))
        run = bind(open_session(content))
        # One row by itself too: neither a batch of one nor one of many may be baked into the graph.
        difference = max(_difference(expected, run(rows)), _difference(expected[:1], run(rows[:1])))
    except Exception as error:  # the exporter and the runtime raise what they like, and a model without ONNX is served by torch
        return f"the model cannot be exported: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    if not difference <= TOLERANCE:
        return f"outputs of ONNX Runtime differ by {difference:.2g} of their scale"
    write_file(folder / ONNX, content)
    return ""


class _Both(nn.Module):
    """Outputs, and what the head saw."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = self.module.pool(x)
        return self.module.head(pooled), pooled


def to_onnx(module: nn.Module, row: torch.Tensor) -> bytes:
    """An ONNX file with input "x" and output "y", any number of rows; of a text also "embedding", the vector that the head sees.

    The older exporter takes 0.03 s, the newer (dynamo) 3.2 s.
    """
    buffer = io.BytesIO()
    names = ["y"]
    if hasattr(module, "pool") and not row.is_floating_point():
        module, names = _Both(module), ["y", EMBEDDING]
    axes = {name: {0: "rows"} for name in ("x", *names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (row,), buffer, dynamo=False, opset_version=_OPSET, input_names=["x"], output_names=names, dynamic_axes=axes
        )
    return buffer.getvalue()


def _difference(expected: NDArray[Any], answers: NDArray[Any]) -> float:
    return float(np.max(np.abs(expected - answers) / np.maximum(1.0, np.abs(expected)), initial=0.0))
