"""`python -m services.training.engine.bench`: the loop's CPU time over that of a bare PyTorch loop doing the same steps."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from services.training.engine.events import Events
from services.training.engine.loop import Loop, Rows
from services.training.engine.spec import Training

ROWS, FEATURES, EPOCHS, ROUNDS = 20_000, 30, 6, 7


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def bare(x: torch.Tensor, y: torch.Tensor) -> None:
    """What one writes without a platform, batches already being slices of tensors."""
    module = make_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        shuffled_x, shuffled_y, total = x[order], y[order], 0.0
        for start in range(0, len(x), 32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(shuffled_x[start : start + 32]), shuffled_y[start : start + 32])
            loss.backward()
            optimizer.step()
            total += loss.item()


def ours(x: torch.Tensor, y: torch.Tensor) -> None:
    training = Training(EPOCHS, 32, "adamw", 1e-3, 0.01, 0, 0, 0.0, 0.0, 0.2, False, 86_400)
    with tempfile.TemporaryDirectory() as folder:
        events = Events(Path(folder) / "events.jsonl")
        Loop(make_module(), training, Rows(x, y), Rows(x[:0], y[:0]), True, events, Path(folder) / "checkpoints").run()


def seconds(work: Callable[[torch.Tensor, torch.Tensor], None], x: torch.Tensor, y: torch.Tensor) -> float:
    start = time.process_time()
    work(x, y)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    x = torch.randn(ROWS, FEATURES)
    y = (x[:, 0] > 0).long()
    pairs = [(seconds(bare, x, y), seconds(ours, x, y)) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    plain, mine = (min(times) for times in zip(*pairs, strict=True))  # the least disturbed of each
    print(f"engine over bare loop: {mine / plain:.3f} (best of {ROUNDS}); {ROWS * EPOCHS / mine:,.0f} rows/s in batches of 32")  # noqa: T201


if __name__ == "__main__":
    main()
