"""The words behind `python -m services.<name>.main`: none serves, `migrate` brings the database up to date, others are the service's."""

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVar

from libs import telemetry
from libs.db import Database, migrate
from libs.errors import AppError
from libs.lifecycle import Component
from libs.process import run
from libs.service.settings import ServiceSettings

S = TypeVar("S", bound=ServiceSettings)


def command(name: str, package: str, settings: S, build: Callable[[S], Component], **others: Callable[[S], Component]) -> None:
    """Does what the process's arguments say for the service `name` in `package`; `others` are its processes beside `build`, by their words.

    Raises SystemExit, in words, when there is no such command or the database cannot be migrated.
    """
    word, builds = " ".join(sys.argv[1:]), {"": build, **others}
    if word == "migrate":
        telemetry.setup(name, level=settings.log_level)
        asyncio.run(_migrate(Database(settings.database), package))
    elif word in builds:
        run(name, settings, builds[word])
    else:
        raise SystemExit(f"{name} has no command {word}; it has {', '.join(['migrate', *others])}, and without one it serves")


async def _migrate(database: Database, package: str) -> None:
    try:
        await database.start()
        await migrate(database, package)
    except AppError as error:
        raise SystemExit(f"{package} is not migrated: {error}") from error
    finally:
        await database.stop()
