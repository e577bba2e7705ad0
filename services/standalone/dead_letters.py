"""Dead letters of a platform on one machine, read from the event log in its home."""

import asyncio

from libs.events import EventLogSettings, open_event_log, replay_dead_letters, waiting_dead_letters
from services.standalone.home import Home
from services.standalone.wiring import SERVICES

__all__ = ["SERVICES", "read"]


def read(home: Home, service: str, *, replay: bool) -> list[dict[str, str]]:
    """What waits, oldest first, each with its reason and where it had stood; with `replay` it is given back to the service."""
    return asyncio.run(_read(home, service, replay))


async def _read(home: Home, service: str, replay: bool) -> list[dict[str, str]]:
    if not home.events.exists():
        return []
    log = open_event_log(EventLogSettings(url=f"sqlite://{home.events}"))
    await log.start()
    try:
        waiting = await waiting_dead_letters(log, service)
        if replay and waiting:
            await replay_dead_letters(log, service, limit=len(waiting))
        return [
            {
                "time": item.event.time,
                "id": item.event.id,
                "type": item.event.type,
                "key": item.event.key,
                "reason": item.event.extensions.get("lepton_dead_reason", ""),
                "topic": item.event.extensions.get("lepton_dead_topic", ""),
                "position": item.event.extensions.get("lepton_dead_position", ""),
            }
            for item in waiting
        ]
    finally:
        await log.stop()
