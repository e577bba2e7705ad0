"""The launcher's adapter for one machine: subprocesses, each with a nanny (`nanny.py`) of its own.

Knows POSIX; on anything but Linux a nanny that is itself killed by force leaves the child to its owner.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import structlog

from libs.launcher import identity
from libs.launcher.launcher import Exit, Launch, LaunchError

log = structlog.get_logger()

NANNY = Path(__file__).with_name("nanny.py")
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
SLACK_SECONDS = 3.0


class SubprocessLauncher:
    """Starts subprocesses. One that ends with its owner needs no `close`: the owner's death is enough."""

    async def start(self, launch: Launch) -> "Subprocess":
        """See Launcher. 15–30 ms, off the event loop."""
        spawning = asyncio.create_task(asyncio.to_thread(_spawn, launch), name=f"spawn {launch.id}")
        try:
            nanny, owner_end = await asyncio.shield(spawning)
            process = Subprocess(launch.id, nanny, owner_end)
            await process.started()
        except BaseException:
            # Broken off, perhaps while the nanny was made: it ends with its socket, and is waited for.
            await asyncio.shield(asyncio.create_task(_abandon(spawning), name=f"abandon {launch.id}"))
            raise
        return process

    async def end(self, handle: str) -> bool:
        """See Launcher."""
        pid = identity.pid_of(handle)
        if pid is None:
            return False
        log.warning("leftover_process_killed", pid=pid)
        identity.kill_group(pid)
        async with asyncio.timeout(SLACK_SECONDS):
            while identity.pid_of(handle) is not None:  # noqa: ASYNC110 (nobody tells us of a process that is not our child)
                await asyncio.sleep(0.01)
        return True

    async def forget(self, group: str) -> None:
        """See Launcher. On one machine a group means nothing."""


class Subprocess:
    """See Process."""

    def __init__(self, id: str, nanny: "subprocess.Popen[bytes]", owner_end: socket.socket) -> None:
        self.id = id
        self.pid = 0
        self.host = ""
        self.handle = ""
        self._nanny = nanny
        self._socket = owner_end
        self._buffer = b""
        self._watching: asyncio.Task[Exit] | None = None

    async def started(self) -> None:
        """Reads the nanny's first word."""
        word = await self._line()
        if word.startswith(b"P"):
            self.pid = int(word[1:])
            self.handle = identity.handle_of(self.pid)
            self._watching = asyncio.create_task(self._watch(), name=f"process {self.id}")
            return
        await asyncio.to_thread(self._nanny.wait)
        reason = os.strerror(int(word[1:])) if word.startswith(b"E") else "its watcher did not start"
        raise LaunchError(f"{self.id} could not be started: {reason}")

    async def wait(self) -> Exit:
        """See Process."""
        assert self._watching
        return await asyncio.shield(self._watching)

    async def stop(self, grace_seconds: float = 5.0) -> Exit:
        """See Process."""
        assert self._watching
        if not self._watching.done():
            try:
                self._socket.send(f"T{grace_seconds:.3f}\n".encode())
            except OSError:
                pass  # It is ending already.
        try:
            async with asyncio.timeout(grace_seconds + SLACK_SECONDS):
                return await self.wait()
        except TimeoutError:
            # Somebody has stopped the nanny itself.
            identity.kill_group(self.pid)
            self._nanny.kill()
            return await self.wait()

    def alive(self) -> bool:
        """See Process."""
        return self._watching is not None and not self._watching.done() and identity.runs(self.pid)

    async def _watch(self) -> Exit:
        word = await self._line()
        self._socket.close()
        if not word.startswith(b"X"):
            # The nanny was killed: on Linux the kernel has killed the child, its children are left to us.
            identity.kill_group(self.pid)
        await asyncio.to_thread(self._nanny.wait)
        if not word.startswith(b"X"):
            return Exit(None, signal.SIGKILL)
        code, number, oom = (int(part) for part in word[1:].split())
        return Exit(None if number else code, number or None, bool(oom))

    async def _line(self) -> bytes:
        """The nanny's next line; empty when it is gone."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            try:
                heard = await loop.sock_recv(self._socket, 256)
            except OSError:
                heard = b""
            if not heard:
                return b""
            self._buffer += heard
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


async def _abandon(spawning: "asyncio.Task[tuple[subprocess.Popen[bytes], socket.socket]]") -> None:
    try:
        nanny, owner_end = await spawning
    except LaunchError:
        return  # There is none.
    owner_end.close()
    await asyncio.to_thread(nanny.wait)


def _spawn(launch: Launch) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    owner_end, nanny_end = socket.socketpair()
    env = {name: os.environ[name] for name in INHERITED if name in os.environ} | dict(launch.env) | _together(launch)
    memory_bytes = (launch.memory_bytes or 0) * launch.workers
    try:
        with ExitStack() as files, nanny_end:
            nanny = subprocess.Popen(
                [sys.executable, "-I", "-S", NANNY, str(nanny_end.fileno()), str(memory_bytes), *launch.argv],
                env=env,
                cwd=launch.cwd,
                stdin=subprocess.DEVNULL,
                stdout=_output(files, launch.stdout),
                stderr=_output(files, launch.stderr),
                pass_fds=[nanny_end.fileno()],
                start_new_session=True,
            )
    except OSError as error:
        owner_end.close()
        raise LaunchError(f"{launch.id} could not be started: {error}") from error
    owner_end.setblocking(False)
    return nanny, owner_end


def _together(launch: Launch) -> dict[str, str]:
    """For torchrun, which starts them here and has them meet where no other machine listens."""
    if launch.workers == 1:
        return {}
    loopback = "lo" if sys.platform == "linux" else "lo0"
    workers = {"PET_STANDALONE": "1", "PET_NPROC_PER_NODE": str(launch.workers), "PET_LOCAL_ADDR": "127.0.0.1"}
    return workers | {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


def _output(files: ExitStack, path: Path | None) -> IO[bytes] | int:
    if path is None:
        return subprocess.DEVNULL
    return files.enter_context(open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0))
