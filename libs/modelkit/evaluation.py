"""Figures of merit on held-out rows. Plain numpy; definitions as in scikit-learn, which the tests compare with."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities [N, K] in double precision from logits [N, K]."""
    exact = logits.astype(np.float64)
    shifted = np.exp(exact - exact.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def confusion_matrix(truth: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts [K, K]: rows are the true class, columns the predicted one."""
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def evaluate_classes(truth: NDArray[np.integer], probabilities: NDArray[np.float64]) -> dict[str, float]:
    """accuracy, macro_f1 and log_loss (nats) from class indices [N] and probabilities [N, K]."""
    rows, classes = probabilities.shape
    matrix = confusion_matrix(truth, probabilities.argmax(axis=1), classes)
    hits, present = np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1)
    f1 = 2 * hits[present > 0] / present[present > 0]
    chosen = np.clip(probabilities[np.arange(rows), truth], np.finfo(np.float64).eps, 1)
    return {"accuracy": float(hits.sum() / rows), "macro_f1": float(f1.mean()), "log_loss": float(-np.log(chosen).mean())}


def evaluate_numbers(truth: NDArray[np.float64], guess: NDArray[np.float64]) -> dict[str, float]:
    """mse, rmse, mae and r2 from [N] and [N], in the target's unit. r2 is left out where the truth does not vary."""
    error = truth - guess
    mse = float(np.mean(error**2))
    figures = {"mse": mse, "rmse": mse**0.5, "mae": float(np.abs(error).mean())}
    spread = float(np.mean((truth - truth.mean()) ** 2))
    return figures if spread == 0 else {**figures, "r2": 1 - mse / spread}
