"""Which event is being handled: for reactions that need its id or time beside its message."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from libs.events.event import Event

_current: ContextVar[Event] = ContextVar("lepton_event")


def current_event() -> Event:
    """The event whose handler is running; LookupError outside of one."""
    return _current.get()


@contextmanager
def handling(event: Event) -> Iterator[None]:
    """Makes `event` the current one inside the block."""
    token = _current.set(event)
    try:
        yield
    finally:
        _current.reset(token)
