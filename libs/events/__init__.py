"""Facts from one service to others, each having its effect once: outbox, relay, event log, inbox, dead letters.

Knows no service's events.
"""

from libs.events.consumer import Consumer, Handler, handles
from libs.events.current import current_event, handling
from libs.events.dead_letter import replay_dead_letters, waiting_dead_letters
from libs.events.event import Event, topic_of
from libs.events.in_memory import InMemoryEventLog
from libs.events.log import EventLog, EventLogSettings, Received, Subscription
from libs.events.opening import open_event_log
from libs.events.relay import Relay

__all__ = [
    "Consumer",
    "Event",
    "EventLog",
    "EventLogSettings",
    "Handler",
    "InMemoryEventLog",
    "Received",
    "Relay",
    "Subscription",
    "current_event",
    "handles",
    "handling",
    "open_event_log",
    "replay_dead_letters",
    "topic_of",
    "waiting_dead_letters",
]
