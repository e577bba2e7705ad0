"""A training job as it goes: a live plot of the loss in terminals, a line an epoch elsewhere, an event a line as JSON."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leptonai._record import clean
from leptonai._types import JobEvent, MetricPoint, TrainingJob

if TYPE_CHECKING:
    from rich.panel import Panel

HEIGHT = 10
SHOWN_LINES = 5
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

See = Callable[[JobEvent], None]


@contextmanager
def watcher(as_json: bool) -> Iterator[See]:
    """What to feed a job's events to."""
    if as_json:
        yield _print_json
    elif sys.stdout.isatty():
        yield from _live()
    else:
        yield _Lines().see


def _print_json(event: JobEvent) -> None:
    found = event.job or event.metric or event.log
    line = {"event": event.kind, "id": event.id, "data": found.raw if found else None}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class _Lines:
    """One line a change of state, one an epoch, and what the job writes to stderr or the platform says."""

    def __init__(self) -> None:
        self._state = ""
        self._epoch = 0
        self._figures: dict[str, float] = {}

    def see(self, event: JobEvent) -> None:
        if event.metric is not None:
            if event.metric.epoch != self._epoch:
                self._flush()
                self._epoch = event.metric.epoch
            self._figures[event.metric.name] = event.metric.value
        elif event.job is not None:
            self._flush()
            described = event.job.state + (f": {event.job.reason}" if event.job.reason else "")
            if described != self._state:
                self._print(f"{event.job.id} {described}")
                self._state = described
        elif event.log is not None and event.log.stream != "stdout":
            self._print(event.log.text)

    def _flush(self) -> None:
        if self._figures:
            figures = "  ".join(f"{name} {value:.6g}" for name, value in self._figures.items())
            self._print(f"epoch {self._epoch}  {figures}")
            self._figures.clear()

    @staticmethod
    def _print(text: str) -> None:
        print(clean(text), flush=True)


def _live() -> Iterator[See]:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    seen = _Seen()
    with Live(console=console, refresh_per_second=8, get_renderable=lambda: seen.panel(console.width)):
        yield seen.see


class _Seen:
    """Everything that the plot shows."""

    def __init__(self) -> None:
        self.job = TrainingJob()
        self.curves: dict[str, list[MetricPoint]] = {}
        self.lines: list[str] = []

    def see(self, event: JobEvent) -> None:
        if event.job is not None:
            self.job = event.job
        elif event.metric is not None:
            self.curves.setdefault(event.metric.name, []).append(event.metric)
        elif event.log is not None:
            self.lines = [*self.lines, clean(event.log.text)][-SHOWN_LINES:]

    def panel(self, width: int) -> "Panel":
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        parts: list[Any] = [Text(self._headline(), style="bold")]
        for name, style in (("loss", "cyan"), ("validation_loss", "magenta")):
            points = self.curves.get(name, [])
            if len(points) > 1:
                parts.append(Text(f"{name.replace('_', ' ')} {points[-1].value:.6g}", style=style))
                parts += [Text(line, style=style) for line in plot([p.value for p in points], max(width - 16, 10), HEIGHT)]
        parts += [Text(line[: width - 6], style="dim") for line in self.lines]
        return Panel(Group(*parts), title=Text(f"{self.job.name} {self.job.id}".strip()), expand=True)

    def _headline(self) -> str:
        points = self.curves.get("loss", [])
        epochs = self.job.progress.epochs if self.job.progress else self.job.training.epochs if self.job.training else 0
        epoch = points[-1].epoch if points else 0
        figures = [f"{name.replace('_', ' ')} {points[-1].value:.4g}" for name, points in self.curves.items() if points]
        state = self.job.state + (f": {self.job.reason}" if self.job.reason and not points else "")
        return "  ".join([clean(state) or "…", f"epoch {epoch}/{epochs}" if epochs else "", *figures])


def plot(values: Sequence[float], width: int, height: int) -> list[str]:
    """Values from left to right as lines of braille dots, with the largest and smallest beside; what is not finite is left out."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    columns, rows = width * 2, height * 4
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column in range(columns):
        value = values[min(column * len(values) // columns, len(values) - 1)]
        if not math.isfinite(value):
            previous = None
            continue
        row = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
        for dot in range(min(row, row if previous is None else previous), max(row, row if previous is None else previous) + 1):
            cells[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
        previous = row
    labels = [f"{high:>9.4g} ", *[" " * 10] * (height - 2), f"{low:>9.4g} "]
    return [label + "".join(chr(0x2800 + cell) for cell in line) for label, line in zip(labels, cells, strict=True)]
