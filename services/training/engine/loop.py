"""The training loop: batches as slices of tensors, early stopping, checkpoints, and signs of life. Knows no files but checkpoints."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from libs.errors import AppError
from services.training.engine import checkpoint
from services.training.engine.crew import Crew
from services.training.engine.events import Events
from services.training.engine.optimizers import make_optimizer
from services.training.engine.spec import Training

_SECOND_NS = 1_000_000_000
_SHUFFLE_WHOLE_BYTES = 1 << 28
_EVALUATION_ROWS = 4096
_MAX_REPORTS = 2000

Loss = Callable[..., Tensor]


@dataclass
class Rows:
    """Rows on the device: x [N, ...], y [N] (classes), [N, 1] (numbers) or [N, L] (a class a place)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Standing:
    """How far a run has come; part of each checkpoint."""

    epoch: int = 0
    step: int = 0
    loss: float = math.nan
    validation_loss: float | None = None
    best_loss: float = math.inf
    best_epoch: int | None = None
    stale: int = 0
    seconds: float = 0.0
    done: bool = False


@dataclass
class Loop:
    """One model being trained. `run` returns when it is trained; the module then has its final weights."""

    module: nn.Module
    training: Training
    train: Rows
    validation: Rows
    classify: bool
    events: Events
    checkpoints: Path
    crew: Crew = field(default_factory=Crew)
    standing: Standing = field(default_factory=Standing)

    def __post_init__(self) -> None:
        self.optimizer: Optimizer = make_optimizer(self.training, self.module.parameters())
        self._shared = self.crew.wrap(self.module)
        self.loss: Loss = functional.cross_entropy if self.classify else functional.mse_loss
        self.best: dict[str, Tensor] | None = None
        self._slices = list(batches(len(self.train), self.training.batch_size))
        self._started = time.monotonic()
        self._next_report = 0
        self._next_sync = 0.0
        self._first = True

    def run(self) -> Standing:
        standing = self.standing
        self._started = time.monotonic() - standing.seconds
        while standing.epoch < self.training.epochs and not standing.done:
            start = time.time_ns()
            before = standing.loss
            standing.epoch += 1
            standing.loss = self._full_batch() if self.training.optimizer == "lbfgs" else self._epoch()
            self._require_finite(standing.loss)
            accuracy = self._validate()
            if self.training.optimizer == "lbfgs" and abs(before - standing.loss) <= 1e-13 * abs(standing.loss):
                standing.done = True
                self.events.log(f"converged after epoch {standing.epoch}: another one no longer lowers the loss")
            self._finish_epoch(start, accuracy)
        if self.best is not None:
            self.module.load_state_dict(self.best)
        return standing

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's state as if there had been no break."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.standing = Standing(**state["standing"])
        self.best = state["best"] if state["best"] is not None else self._copy() if self.standing.best_epoch else None
        checkpoint.set_random_state(state["random"])

    def _epoch(self) -> float:
        module, optimizer, crew, events = self._shared.train(), self.optimizer, self.crew, self.events
        if not crew.alone:
            # A resumed run draws the same again, each worker its own, without a checkpoint of every worker's generator.
            torch.manual_seed(((self.training.seed * 1_000_003 + self.standing.epoch) * 64 + crew.rank) % (1 << 63))
        # On a GPU the loss stays there: reading it at each step would make every step wait.
        on_cpu = self.train.x.device.type == "cpu"
        total: Any = 0.0 if on_cpu else torch.zeros((), dtype=torch.float64, device=self.train.x.device)
        self._next_report = self._next_report or time.monotonic_ns() + _SECOND_NS
        for batch, (x, y) in self._shuffled():
            rows = batch.stop - batch.start
            optimizer.zero_grad(set_to_none=True)
            loss = self._part_of_mean(module(x), y, rows)
            # The mean of the workers' gradients is to be that of one worker with the whole batch.
            (loss if crew.alone else loss * crew.size).backward()
            optimizer.step()
            total += (loss.item() if on_cpu else loss.detach()) * rows
            self.standing.step += 1
            if self._first or time.monotonic_ns() >= self._next_report:
                self._report(batch.stop, float(total) * crew.size / batch.stop)
                events.beat("train")
        return self._sum(float(total))[0] / len(self.train)

    def _part_of_mean(self, outputs: Tensor, y: Tensor, rows: int) -> Tensor:
        """What this worker's rows add to the mean loss of `rows`, which are all workers'."""
        return self.loss(outputs, y) if self.crew.alone else self.loss(outputs, y, reduction="sum") / (rows * y.shape[1:].numel())

    def _sum(self, *figures: float) -> list[float]:
        return self.crew.sum(*figures, device=self.train.x.device.type)

    def _full_batch(self) -> float:
        """One L-BFGS step (up to 20 iterations) over all rows; returns the loss after it."""
        self.module.train()

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.module(self.train.x), self.train.y)
            if self.training.weight_decay:
                loss = loss + self.training.weight_decay / 2 * sum((p * p).sum() for p in self.module.parameters() if p.dim() > 1)
            loss.backward()
            if self._first or time.monotonic_ns() >= self._next_report:
                self._report(len(self.train), float(loss.detach()))
                self.events.beat("train")
            return loss.detach()

        with torch.enable_grad():
            self.standing.step += 1
            self.optimizer.step(closure)
        return self._mean_loss(self.train)[0]

    def _shuffled(self) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
        """Each batch, and this worker's rows of it; the order depends on seed and epoch alone, so that a resumed run sees the same."""
        generator = torch.Generator().manual_seed((self.training.seed * 1_000_003 + self.standing.epoch) % (1 << 63))
        order = torch.randperm(len(self.train), generator=generator).to(self.train.x.device)
        x, y = self.train.x, self.train.y
        if x.numel() * x.element_size() <= _SHUFFLE_WHOLE_BYTES:
            x, y = x[order], y[order]
            for batch in self._slices:
                chosen = self.crew.share(batch)
                yield batch, (x[chosen], y[chosen])
        else:
            for batch in self._slices:
                rows = order[self.crew.share(batch)]
                yield batch, (x[rows], y[rows])

    def _validate(self) -> float | None:
        """Sets the standing's validation loss and returns the accuracy, for a classifier; decides whether to stop early."""
        if not len(self.validation):
            return None
        loss, accuracy = self._mean_loss(self.validation)
        self._require_finite(loss)
        standing, training = self.standing, self.training
        standing.validation_loss = loss
        if loss < standing.best_loss - training.min_delta:
            standing.best_loss, standing.best_epoch, standing.stale = loss, standing.epoch, 0
            self.best = self._copy() if training.patience else None
        else:
            standing.stale += 1
        if training.patience and standing.stale >= training.patience:
            standing.done = True
            self.events.log(f"stopped early after epoch {standing.epoch}; the weights of epoch {standing.best_epoch} are kept")
        return accuracy

    def _mean_loss(self, rows: Rows) -> tuple[float, float | None]:
        share = self.crew.share(slice(0, len(rows)))
        outputs, y = predict(self.module, rows.x[share], lambda: self.events.beat("train")), rows.y[share]
        right = float((outputs.argmax(1) == y).sum()) / (len(rows) * y.shape[1:].numel()) if self.classify else 0.0
        loss, accuracy = self._sum(float(self._part_of_mean(outputs, y, len(rows))), right)
        return loss, accuracy if self.classify else None

    def _finish_epoch(self, start_ns: int, accuracy: float | None) -> None:
        standing, epochs = self.standing, self.training.epochs
        standing.seconds = time.monotonic() - self._started
        last = standing.done or standing.epoch == epochs
        if last or standing.epoch % -(-epochs // _MAX_REPORTS) == 0:
            named = {"loss": standing.loss, "validation_loss": standing.validation_loss, "validation_accuracy": accuracy}
            for name, value in named.items():
                if value is not None:
                    self.events.emit("metric", name=name, step=standing.step, epoch=standing.epoch, value=value)
        self.events.record_span("epoch", start_ns, epoch=standing.epoch, loss=standing.loss)
        self._save(last)
        if last or time.monotonic_ns() >= self._next_report:
            self._report(len(self.train), standing.loss)
        self.events.beat("train")
        # By one clock: what one worker alone raised, the others would wait for.
        if self.crew.first and standing.seconds > self.training.time_limit_seconds and not last:
            limit = f"{self.training.time_limit_seconds} s of training were over in epoch {standing.epoch} of {epochs}"
            raise AppError(f"{limit}; raise time_limit_seconds, or lower epochs", code="time_limit")

    def _save(self, last: bool) -> None:
        if not self.crew.first:
            return
        standing = self.standing
        best = self.best if standing.best_epoch != standing.epoch else None
        state = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "standing": vars(standing),
            "best": best,
            "random": checkpoint.random_state(),
        }
        durable = last or time.monotonic() >= self._next_sync
        folder = self.checkpoints / f"epoch-{standing.epoch}"
        checkpoint.write(folder, state, durable=durable)
        if durable:
            self._next_sync = time.monotonic() + 1
        checkpoint.prune(self.checkpoints, standing.best_epoch)
        self.events.emit("checkpoint", epoch=standing.epoch, step=standing.step, path=f"checkpoints/{folder.name}", durable=durable)

    def _report(self, rows: int, loss: float) -> None:
        self._first = False
        self._next_report = time.monotonic_ns() + _SECOND_NS
        if not self.crew.first:
            return
        self._require_finite(loss)
        standing = self.standing
        seen = max(0, standing.epoch - 1) * len(self.train) + rows
        elapsed = max(time.monotonic() - self._started, 1e-9)
        figures = {"loss": loss, "validation_loss": standing.validation_loss, "rows_per_second": seen / elapsed}
        self.events.emit("progress", phase="train", epoch=standing.epoch, epochs=self.training.epochs, step=standing.step, **figures)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            rate = self.training.learning_rate
            detail = (
                f"the loss became infinite or not a number in epoch {self.standing.epoch} (step {self.standing.step}); "
                f"lower the learning rate, for example to {rate / 10:g} (it is {rate:g}), or look for extreme values in the data"
            )
            raise AppError(detail, code="loss_diverged")

    def _copy(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.module.state_dict())


def batches(rows: int, size: int) -> Iterator[slice]:
    """Slices that cover all rows; a single row left over joins the batch before it, since batch norm cannot train on one."""
    start = 0
    while start < rows:
        stop = start + size if rows - start - size > 1 else rows
        stop = min(stop, rows) if size > 1 else start + 1
        yield slice(start, stop)
        start = stop


def predict(module: nn.Module, x: Tensor, beat: Callable[[], None] = lambda: None) -> Tensor:
    """Outputs [N, K] for all rows, in evaluation mode."""
    module.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, max(1, len(x)), _EVALUATION_ROWS):
            parts.append(module(x[start : start + _EVALUATION_ROWS]))
            beat()
    return torch.cat(parts)
