"""A member of a group as a process of its own, to be killed: URL, own name, folder of the database, seconds an event."""

import asyncio
import sys
from pathlib import Path

from tests.integration.events.scene import consumer_of, database_in, event_log


async def main(url: str, own: str, folder: Path, seconds: float) -> None:
    async with database_in(folder) as database, event_log(url) as log:
        await consumer_of(own, database, log, seconds=seconds).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])))
