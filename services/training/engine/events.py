"""What a run tells the world: one JSON object a line, appended to a file that outlives the process. Nobody need be listening."""

import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_SPANS = 200
_BEAT_SECONDS = 0.8


class Events:
    """Appends to `path`. Each line is one write, so that a killed process leaves whole lines before at most one torn one."""

    def __init__(self, path: Path, traceparent: str = "") -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # the torn last line of an attempt that was killed
        self._trace, self._parent = _parse(traceparent)
        self._spans = 0
        self._next_beat = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"type": kind, "time": time.time(), **_finite(fields)}, allow_nan=False)
        os.write(self._file, line.encode() + b"\n")

    def log(self, text: str) -> None:
        self.emit("log", stream="platform", text=text)

    def beat(self, phase: str) -> None:
        """A sign of life from the work itself, not from a thread: a run that hangs falls silent."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + _BEAT_SECONDS
            self.emit("heartbeat", phase=phase)

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
        """A span around the block, child of the span around this one; what is put into the yielded dict becomes attributes."""
        span_id, parent, start = secrets.token_hex(8), self._parent, time.time_ns()
        self._parent = span_id
        try:
            yield attributes
        finally:
            self._parent = parent
            self._emit_span(name, span_id, parent, start, attributes)

    def record_span(self, name: str, start_ns: int, **attributes: Any) -> None:
        """A span that began at `start_ns` and ends now."""
        self._emit_span(name, secrets.token_hex(8), self._parent, start_ns, attributes)

    def _emit_span(self, name: str, span_id: str, parent: str, start: int, attributes: Mapping[str, Any]) -> None:
        self._spans += 1
        if self._spans > MAX_SPANS and name == "epoch":
            return
        ids = {"trace_id": self._trace, "span_id": span_id, "parent_id": parent}
        self.emit("span", name=name, **ids, start_ns=start, end_ns=time.time_ns(), attributes=dict(attributes))


def _parse(traceparent: str) -> tuple[str, str]:
    """Trace and parent span id of a W3C traceparent; a new trace without parent where there is none."""
    parts = traceparent.split("-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16 and int(parts[1], 16) and int(parts[2], 16):
        return parts[1], parts[2]
    return secrets.token_hex(16), ""


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
