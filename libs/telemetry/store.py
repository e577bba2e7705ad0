"""The port through which traces are read, and which adapter a URL names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from libs.telemetry.redaction import redacted

FORMS = {
    "none": "none:",
    "sqlite": "sqlite:///path/traces.db",
    "otlp": "otlp+http://collector:4318 (or otlp+https)",
    "jaeger": "jaeger+http://jaeger:16686 (or jaeger+https)",
}
# Of one trace.
READ_SPANS = 10_000


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
        """The spans of a trace that have ended, by their start, at most 10,000; none where the trace is unknown or was dropped for age.

        Raises Transient where what keeps them is away.
        """


@dataclass(frozen=True)
class Place:
    """Where a URL says that telemetry is. `kind` is "none", "sqlite" (`at` is a path), "otlp" or "jaeger" (`at` is an HTTP URL)."""

    kind: str
    at: str = ""


def place_of(url: str, *, kinds: Sequence[str]) -> Place:
    """Raises ValueError, with what would be right, on anything but these kinds."""
    place = _parsed(url)
    if place is None or place.kind not in kinds:
        right = " or ".join(FORMS[kind] for kind in kinds)
        raise ValueError(f"telemetry URL {redacted(url)!r}: must be {right}")
    return place


def _parsed(url: str) -> Place | None:
    scheme, _, rest = url.partition(":")
    if scheme == "none" and not rest:
        return Place("none")
    if scheme == "sqlite" and rest.startswith("///"):
        return Place("sqlite", rest.removeprefix("//"))
    kind, _, transport = scheme.partition("+")
    if kind in ("otlp", "jaeger") and transport in ("http", "https"):
        at = urlsplit(f"{transport}:{rest}")
        # Keys go into headers, which a log of the URL does not show.
        if at.hostname and not (at.username or at.password or at.query or at.fragment):
            return Place(kind, f"{transport}:{rest}".rstrip("/"))
    return None
