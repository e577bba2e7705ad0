"""Bars while a person waits: in terminals and notebooks, on stderr; nothing elsewhere, so that output stays clean."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from leptonai._types import BatchPrediction, JobEvent


def wanted(progress: bool | None) -> bool:
    """Whether somebody is looking: `progress` where given, else a terminal or a notebook."""
    if progress is not None:
        return progress
    shell = sys.modules.get("IPython")
    in_notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return in_notebook or sys.stderr.isatty()


@contextmanager
def job_progress(progress: bool | None) -> Iterator[Callable[[JobEvent], None]]:
    """A bar of a job's epochs with its loss, fed with its events."""
    if not wanted(progress):
        yield lambda event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, figures="")
        figures: dict[str, float] = {}

        def show(event: JobEvent) -> None:
            if event.metric is not None:
                figures[event.metric.name] = event.metric.value
                bar.update(task, completed=event.metric.epoch)
            if event.job is not None:
                state, reason = event.job.state, event.job.reason
                epochs = event.job.training.epochs if event.job.training else 0
                if event.job.progress:
                    epochs = event.job.progress.epochs or epochs
                    bar.update(task, completed=max(event.job.progress.epoch, int(bar.tasks[0].completed)))
                described = f"{state}: {reason}" if state == "queued" and reason else state
                bar.update(task, description=described[:60], total=epochs or None)
            shown = [f"{name} {figures[name]:.4g}" for name in ("loss", "validation_loss") if name in figures]
            bar.update(task, figures="  ".join(shown).replace("_", " "))

        yield show


@contextmanager
def rows_progress(progress: bool | None) -> Iterator[Callable[[BatchPrediction], None]]:
    """A bar of the rows that are predicted, fed with the job as it is."""
    if not wanted(progress):
        yield lambda batch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rows", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("predicting", total=None)

        def show(batch: BatchPrediction) -> None:
            described = f"{batch.state}: {batch.reason}" if batch.state == "queued" and batch.reason else batch.state
            bar.update(task, description=described[:60], completed=batch.rows_done, total=batch.rows or None)

        yield show
