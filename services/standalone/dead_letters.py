"""Dead letters: what a service could not process, from the event log of a platform's home or of its settings.

`python -m services.standalone.dead_letters accounts [--replay]`, inside a container of the platform, is `lepton dead-letters` there.
"""

import argparse
import asyncio
import json

from libs.errors import AppError
from libs.events import EventLogSettings, open_event_log, replay_dead_letters, waiting_dead_letters
from libs.settings import Settings, SettingsConfigDict
from services.standalone.home import Home
from services.standalone.wiring import SERVICES

__all__ = ["SERVICES", "read", "read_log"]


class DeadLetterSettings(Settings):
    """The platform's event log: LEPTON_PLATFORM_EVENTS__…"""

    model_config = SettingsConfigDict(env_prefix="LEPTON_DEAD_LETTERS_")

    events: EventLogSettings = EventLogSettings()


def read(home: Home, service: str, *, replay: bool) -> list[dict[str, str]]:
    """What waits, oldest first, each with its reason and where it had stood; with `replay` it is given back to the service."""
    if not home.events.exists():
        return []
    return asyncio.run(read_log(EventLogSettings(url=f"sqlite://{home.events}"), service, replay=replay))


async def read_log(settings: EventLogSettings, service: str, *, replay: bool) -> list[dict[str, str]]:
    """The same of any event log."""
    log = open_event_log(settings)
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


def main() -> None:
    """One JSON object a line."""
    parser = argparse.ArgumentParser(prog="dead_letters", description="Shows events that a service could not process.")
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("--replay", action="store_true", help="give them back to the service, each once")
    asked = parser.parse_args()
    try:
        found = asyncio.run(read_log(DeadLetterSettings().events, asked.service, replay=asked.replay))
    except AppError as error:
        parser.exit(1, f"error: {error}\n")
    for letter in found:
        print(json.dumps(letter))


if __name__ == "__main__":
    main()
