"""What a run tells in its events file and on its output, turned into what is written down. Trusts no line of it."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog

from services.training.handlers.attempts import Batch, Line, Metric, Told

log = structlog.get_logger()

MAX_TEXT = 2000
MAX_NAME = 100
LONGEST_EVENT = 32 << 20
LONGEST_OUTPUT = 64 << 10
_BIGGEST = 1 << 62
_PHASES = {
    "start": "its process has started",
    "load": "reads the data and loads the framework",
    "preprocess": "preprocesses the data",
    "train": "trains",
    "evaluate": "evaluates",
}


class Story:
    """Hears events in order. `batch` is what is to be written next; `heard` the time.monotonic() of the last sign of life."""

    def __init__(
        self, told: Told, trace_id: str, *, max_metrics: int, max_lines: int, record_span: Callable[[Mapping[str, Any]], object]
    ) -> None:
        self.batch = Batch()
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.progress: dict[str, Any] | None = None
        # (epoch, step) of the newest checkpoint that the run has made.
        self.checkpoint: tuple[int, int] | None = None
        self.heard: float | None = None
        self.last_output = ""
        self._last_steps = dict(told.last_steps)
        self._metrics_left = max_metrics - told.metrics
        self._lines_left = max_lines - told.lines
        self._trace_id, self._record_span = trace_id, record_span
        self._garbage = 0
        self._stepped = False
        self._phase = ""

    def take(self) -> Batch:
        """The batch, which the caller now has to write or to give back."""
        batch, self.batch = self.batch, Batch()
        return batch

    def give_back(self, batch: Batch) -> None:
        """It could not be written: it comes first in the next one."""
        later, self.batch = self.batch, batch
        self.batch.entries += later.entries
        self.batch.progress = later.progress or batch.progress
        self.batch.phase = later.phase or batch.phase
        self.batch.first_step_time = batch.first_step_time or later.first_step_time

    def hear(self, line: bytes) -> None:
        """One line of the events file."""
        try:
            event = orjson.loads(line)
            hear = self._EVENTS[event["type"]]
            at = event.get("time")
            hear(self, event, float(at) if _is_number(at) and 0 < at < 1e11 else time.time())
        except (ValueError, TypeError, KeyError, AttributeError):
            self._garbage += 1
            if self._garbage == 1:
                log.warning("run_event_unreadable", line=line[:200])
            return
        self.heard = time.monotonic()

    def hear_output(self, stream: str, line: bytes) -> None:
        """One line that the process printed."""
        text = line.decode(errors="replace").rpartition("\r")[2].rstrip()
        if text:
            self.last_output = text[:300] if stream == "stderr" else self.last_output
            self._add_line(Line(stream, text, time.time()))

    def say(self, text: str) -> None:
        """A line of the platform's own."""
        self._add_line(Line("platform", text, time.time()))

    def _add_line(self, line: Line) -> None:
        self._lines_left -= 1
        if self._lines_left == 0:
            self.batch.entries.append(Line("platform", "more lines are not kept", line.time))
        elif self._lines_left > 0:
            text = line.text if len(line.text) <= MAX_TEXT else line.text[:MAX_TEXT] + "…"
            self.batch.entries.append(Line(line.stream, text, line.time))

    def _on_metric(self, event: Mapping[str, Any], at: float) -> None:
        name, step, epoch, value = event["name"], _count(event["step"]), _count(event["epoch"]), event["value"]
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise ValueError
        # An attempt that goes on from a checkpoint does some epochs again; and what is no number cannot be drawn.
        if not _is_number(value) or step <= self._last_steps.get(name, -1):
            return
        self._last_steps[name] = step
        self._metrics_left -= 1
        if self._metrics_left >= 0:
            self.batch.entries.append(Metric(name, step, epoch, float(value), at))

    def _on_log(self, event: Mapping[str, Any], at: float) -> None:
        self._add_line(Line("platform", str(event["text"]), at))

    def _on_progress(self, event: Mapping[str, Any], at: float) -> None:
        progress = {name: _count(event[name]) for name in ("epoch", "epochs", "step")}
        if max(progress["epoch"], progress["epochs"]) >= 1 << 32:
            raise ValueError
        figures = {name: float(event[name]) for name in ("loss", "validation_loss", "rows_per_second") if _is_number(event.get(name))}
        self.progress = self.batch.progress = {**progress, **figures}
        if not self._stepped:
            self._stepped = True
            self.batch.first_step_time = at

    def _on_checkpoint(self, event: Mapping[str, Any], at: float) -> None:
        self.checkpoint = _count(event["epoch"]), _count(event["step"])

    def _on_span(self, event: Mapping[str, Any], at: float) -> None:
        if event["trace_id"] != self._trace_id:
            raise ValueError
        span = {name: event[name] for name in ("name", "span_id", "start_ns", "end_ns", "attributes")}
        try:
            self._record_span({**span, "service": "training", "traceparent": f"00-{self._trace_id}-{event['parent_id']}-01"})
        except Exception as error:  # Telemetry never ends a run.
            log.warning("run_span_refused", error=repr(error))

    def _on_heartbeat(self, event: Mapping[str, Any], at: float) -> None:
        phase = _PHASES.get(str(event.get("phase")), "")
        if phase != self._phase:
            self._phase = self.batch.phase = phase

    def _on_result(self, event: Mapping[str, Any], at: float) -> None:
        self.result = dict(event)

    def _on_error(self, event: Mapping[str, Any], at: float) -> None:
        self.error = {"code": str(event["code"]), "detail": str(event["detail"])[:MAX_TEXT], "errors": _violations(event), "meta": {}}

    _EVENTS = {
        "metric": _on_metric,
        "log": _on_log,
        "progress": _on_progress,
        "checkpoint": _on_checkpoint,
        "span": _on_span,
        "heartbeat": _on_heartbeat,
        "result": _on_result,
        "error": _on_error,
    }


def _violations(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for item in event.get("errors") or ():
        suggestions = [str(text) for text in item.get("suggestions") or ()]
        found.append({"field": str(item["field"]), "message": str(item["message"]), "suggestions": suggestions})
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _BIGGEST:
        raise ValueError
    return value
