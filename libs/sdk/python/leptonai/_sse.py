"""Server-sent events out of bytes, as the HTML standard's section 9.2.6 says. Knows no network and no jobs."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 16 << 20


@dataclass(frozen=True)
class Event:
    """One event. `id` is the last one seen, also where this event has none."""

    id: str
    kind: str
    data: str


class Parser:
    """Feed it chunks as they come, cut anywhere; it gives the events that they complete. `retry` is the server's pause in seconds."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: float | None = None
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._rest = ""
        self._id = last_id
        self._kind = ""
        self._data: list[str] = []
        self._size = 0

    def resumed(self) -> "Parser":
        """A new one for the stream that goes on after the last event."""
        parser = Parser(self.last_id)
        parser.retry = self.retry
        return parser

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Raises ValueError when one event is larger than 16 MiB."""
        text = self._rest + self._decode(chunk)
        held = "\r" if text.endswith("\r") else ""  # its "\n" may be in the next chunk
        lines = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        if len(self._rest) + self._size > LARGEST:
            raise ValueError("an event is larger than 16 MiB")
        for line in lines:
            event = self._line(line)
            if event is not None:
                yield event

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = min(int(value[:9]) / 1000, 60.0)
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id  # only now: an event that was cut off must come again
        kind, data = self._kind, self._data
        self._kind, self._data, self._size = "", [], 0
        return Event(self.last_id, kind or "message", "\n".join(data)) if data else None
