"""The two models that are served: an MLP 64→128→10 over numeric columns, and a CNN over 1×28×28 pictures.

Peers get each as one graph from raw rows to probabilities, so that they compute what a package's runtime does and nothing else.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from libs.modelkit import package as packages
from libs.modelkit.architectures import build
from libs.modelkit.export import export, to_onnx
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import Preprocessing, fit_images, fit_table
from libs.modelkit.spec import complete_params
from libs.modelkit.target import fit_target

COLUMNS = tuple(f"f{index}" for index in range(64))
# For ONNX Runtime, and for torch.
WHOLE, PROGRAM = "whole.onnx", "whole.pt2"


def make(folder: Path) -> None:
    """Writes the packages `mlp` and `cnn`, with random weights."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    table = fit_table({name: random.normal(size=100) for name in COLUMNS}, dict.fromkeys(COLUMNS, "double"))
    pictures = fit_images("image", random.integers(0, 255, (8, 28, 28, 1), np.uint8))
    _ship(folder / "mlp", "classification", "mlp", {"hidden": [128]}, table, random.normal(size=(4, 64)))
    _ship(folder / "cnn", "image_classification", "cnn", {}, pictures, random.normal(size=(4, 1, 28, 28)))


def _ship(folder: Path, task: str, architecture: str, given: dict[str, Any], fitted: Preprocessing, rows: NDArray[np.float64]) -> None:
    target = fit_target("y", "string", np.array([f"c{index % 10}" for index in range(100)], object), classify=True)
    params = complete_params(architecture, given)
    module = build(architecture, params, fitted.kind, fitted.shape, target.outputs, 2).eval()
    made = Package(task, architecture, params, "float32", fitted, target, {}, folder)
    packages.write(made, {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()})
    if reason := export(module, rows.astype(np.float32), folder):
        raise SystemExit(f"error: {architecture}: {reason}")
    whole = _Whole(fitted, module).eval()
    row = torch.zeros(1, *((28, 28) if fitted.kind == "image" else (len(COLUMNS),)))
    (folder / WHOLE).write_bytes(to_onnx(whole, row))
    torch.export.save(torch.export.export(whole, (row,)), folder / PROGRAM)


class _Whole(nn.Module):
    """Raw rows as float32 to probabilities."""

    def __init__(self, fitted: Preprocessing, module: nn.Module) -> None:
        super().__init__()
        image = fitted.kind == "image"
        means, scales = (fitted.data[key] if image else [field[key] for field in fitted.inputs] for key in ("mean", "scale"))
        self.shape, self.unit = fitted.shape, 255 if image else 1
        self.mean, self.scale = (nn.Buffer(torch.tensor(figures, dtype=torch.float32)) for figures in (means, scales))
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.module((x.reshape(-1, *self.shape) / self.unit - self.mean) / self.scale)
        return rows.softmax(1)
