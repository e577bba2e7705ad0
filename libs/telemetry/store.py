"""The port through which traces are read, and which adapter a URL names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Span:
    """A piece of work. Ids are hexadecimal; `parent_id` is empty at the root; times are Unix nanoseconds; `status` is "" or an error."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    status: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


class TraceStore(Protocol):
    """Kept spans."""

    async def spans(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have ended, by their start; none where the trace is unknown or was dropped for age."""


def sqlite_path(url: str) -> Path | None:
    """The file of "sqlite:///path", None for "none:"; raises ValueError on anything else."""
    scheme, _, rest = url.partition(":")
    if scheme == "none" and not rest:
        return None
    if scheme == "sqlite" and rest.startswith("///"):
        return Path(rest.removeprefix("//"))
    raise ValueError(f"telemetry URL {url!r}: must be sqlite:///path/traces.db or none:")
