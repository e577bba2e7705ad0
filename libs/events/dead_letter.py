"""Events that a consumer could not process: kept in a topic of their own with reason and origin, and given back on demand."""

from dataclasses import replace

from libs.errors import AppError
from libs.events.event import Event
from libs.events.log import EventLog, Received, Subscription


def dead_topic(service: str) -> str:
    """Where a service's dead letters lie."""
    return f"lepton.{service}.dead-letter.v1"


def is_dead_topic(topic: str) -> bool:
    """Whether dead letters of some service lie there."""
    return topic.endswith(".dead-letter.v1")


def retry_topic(service: str) -> str:
    """Where replayed ones come back to that service alone."""
    return f"lepton.{service}.retry.v1"


def dead_letter(service: str, received: Received, error: Exception) -> Event:
    """The event as it was, with why it failed and where it had stood."""
    event = received.event
    reason = error.detail if isinstance(error, AppError) else type(error).__name__
    return replace(
        event,
        topic=dead_topic(service),
        extensions={
            **event.extensions,
            "lepton_dead_reason": reason,
            "lepton_dead_topic": event.topic,
            "lepton_dead_partition": str(received.partition),
            "lepton_dead_position": str(received.position),
        },
    )


async def waiting_dead_letters(log: EventLog, service: str, *, limit: int = 1000) -> list[Received]:
    """A service's dead letters that have not been given back since, oldest first. Their extensions `lepton_dead_…` say why and whence."""
    subscription = log.subscribe(_replay_group(service), [dead_topic(service)])
    try:
        return await _waiting(subscription, limit)
    finally:
        await subscription.close()


async def replay_dead_letters(log: EventLog, service: str, *, limit: int = 1000) -> int:
    """Gives up to `limit` of a service's dead letters back to it, oldest first; returns how many. Each is given back once a call."""
    subscription = log.subscribe(_replay_group(service), [dead_topic(service)])
    try:
        batch = await _waiting(subscription, limit)
        if batch:
            await log.publish([_revived(received.event, service) for received in batch])
            await subscription.commit(batch)
        return len(batch)
    finally:
        await subscription.close()


async def _waiting(subscription: Subscription, limit: int) -> list[Received]:
    """Up to `limit`, however few the log gives at once."""
    found: list[Received] = []
    while len(found) < limit and (more := await subscription.poll(limit - len(found), 0.5)):
        found += more
    return found


def _replay_group(service: str) -> str:
    return f"{service}.replay"


def _revived(event: Event, service: str) -> Event:
    kept = {k: v for k, v in event.extensions.items() if not k.startswith("lepton_dead_")}
    times = int(kept.get("lepton_replay", "0")) + 1
    return replace(event, topic=retry_topic(service), extensions={**kept, "lepton_replay": str(times)})
