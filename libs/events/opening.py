"""Which event log a URL means."""

from libs.events.in_memory import InMemoryEventLog
from libs.events.kafka import KafkaEventLog
from libs.events.log import EventLog, EventLogSettings
from libs.events.sqlite import SqliteEventLog


def open_event_log(settings: EventLogSettings) -> EventLog:
    """The adapter that the URL names."""
    scheme, _, rest = settings.url.partition(":")
    match scheme:
        case "memory":
            return InMemoryEventLog()
        case "sqlite":
            return SqliteEventLog(rest.removeprefix("//"), retention_seconds=settings.retention_seconds)
        case "kafka":
            return KafkaEventLog(settings)
        case _:
            raise ValueError(f"event log URL of the scheme {scheme!r}: it must be kafka, sqlite or memory")
