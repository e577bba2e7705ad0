"""A linear model trained on decorrelated features, and then written as one on the given features.

L-BFGS then sees a round bowl instead of a narrow valley: features of any scale and nearly collinear ones converge in a few steps.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_FEATURES = 2000


class Whitened(nn.Module):
    """y = linear((x - mean) @ basis); the basis [features, directions] makes the training rows' covariance the identity."""

    mean: Tensor
    basis: Tensor

    def __init__(self, linear: nn.Linear, mean: NDArray[np.float64], basis: NDArray[np.float64]) -> None:
        super().__init__()
        self.linear = nn.Linear(basis.shape[1], linear.out_features)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("basis", torch.from_numpy(basis))
        weight = linear.weight.detach().double()
        with torch.no_grad():
            self.linear.weight.copy_(torch.linalg.lstsq(self.basis, weight.T, driver="gelsd").solution.T)
            self.linear.bias.copy_(linear.bias.double() + weight @ self.mean)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear((x - self.mean) @ self.basis)
        return out

    def fold(self) -> nn.Linear:
        """The same function as one affine layer on the features."""
        basis, mean = self.basis.double(), self.mean.double()
        weight = self.linear.weight.detach().double() @ basis.T
        folded = nn.Linear(basis.shape[0], self.linear.out_features)
        folded.to(self.linear.weight.dtype)
        with torch.no_grad():
            folded.weight.copy_(weight)
            folded.bias.copy_(self.linear.bias.double() - weight @ mean)
        return folded


def whiten(linear: nn.Linear, x: NDArray[np.floating], scales: NDArray[np.float64], tolerance: float) -> Whitened:
    """For training rows x [N, F].

    tolerance > 0: directions of the features in their own units (x * scales) that are shorter than `tolerance` times the longest are
    left out, as scikit-learn's LinearRegression(tol=...) does. 0: only those that are rounding noise.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    units = scales if tolerance else np.ones_like(scales)
    upper = np.linalg.qr((x - mean) * units, mode="r")
    _, lengths, directions = np.linalg.svd(upper, full_matrices=False)
    floor = tolerance or max(x.shape) * np.finfo(np.float64).eps
    kept = lengths > floor * lengths.max(initial=0)
    basis = units[:, None] * directions[kept].T / lengths[kept] * np.sqrt(len(x))
    return Whitened(linear, mean, np.ascontiguousarray(basis))
