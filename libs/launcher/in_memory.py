"""The launcher's adapter for tests: processes that exist in name only, and end when the test says so."""

import asyncio
import signal
from collections.abc import Callable
from itertools import count

from libs.launcher.launcher import Exit, Launch, LaunchError


class InMemoryProcess:
    """See Process. `exit` ends it."""

    def __init__(self, launch: Launch, pid: int) -> None:
        self.launch = launch
        self.id = launch.id
        self.pid = pid
        self.host = ""
        self.handle = f"{pid}:memory"
        self.stopped = False
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def exit(self, exit: Exit) -> None:
        """The program ends."""
        if not self._ended.done():
            self._ended.set_result(exit)

    async def wait(self) -> Exit:
        """See Process."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_seconds: float = 5.0) -> Exit:
        """See Process; it obeys at once."""
        self.stopped = True
        self.exit(Exit(None, signal.SIGTERM if grace_seconds else signal.SIGKILL))
        return await self.wait()

    def alive(self) -> bool:
        """See Process."""
        return not self._ended.done()


class InMemoryLauncher:
    """See Launcher. `on_start` sees each process as it starts; `failing` makes starts raise LaunchError."""

    def __init__(self, on_start: Callable[[InMemoryProcess], None] | None = None) -> None:
        self.processes: list[InMemoryProcess] = []
        self.failing = False
        self.leftovers: set[str] = set()
        self.forgotten: list[str] = []
        self.on_start = on_start
        self._pids = count(1000)

    @property
    def running(self) -> list[InMemoryProcess]:
        """Those that have not ended, oldest first."""
        return [process for process in self.processes if process.alive()]

    async def start(self, launch: Launch) -> InMemoryProcess:
        """See Launcher."""
        if self.failing:
            raise LaunchError(f"{launch.id} could not be started: told to fail")
        process = InMemoryProcess(launch, next(self._pids))
        self.processes.append(process)
        if self.on_start:
            self.on_start(process)
        return process

    async def end(self, handle: str) -> bool:
        """See Launcher."""
        if handle in self.leftovers:
            self.leftovers.discard(handle)
            return True
        return False

    async def forget(self, group: str) -> None:
        """See Launcher."""
        self.forgotten.append(group)
