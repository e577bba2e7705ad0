"""A real `lepton up` for tests: started, killed, started again, and watched for what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

import leptonai as la

LEPTON = str(Path(sys.executable).with_name("lepton"))


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lepton(*words: str, env: dict[str, str] | None = None, stdin: str = "", timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Runs the command line as a user would."""
    return subprocess.run(
        [LEPTON, *words], env={**os.environ, **(env or {})}, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


class Reachable:
    """A platform at an address, with a key; which processes are its own, the platforms below say."""

    key: str

    @property
    def url(self) -> str:
        raise NotImplementedError

    def processes(self) -> list[psutil.Process]:
        raise NotImplementedError

    def find(self, word: str) -> list[psutil.Process]:
        """Its processes whose command line has `word`, nannies left out."""
        found = []
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if word in line and "nanny.py" not in line:
                found.append(process)
        return found

    def client(self, key: str = "") -> la.Client:
        return la.Client(key or self.key, self.url)

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain HTTP client; `key` "" sends none."""
        key = self.key if key is None else key
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60)


@dataclass
class Platform(Reachable):
    """One LEPTON_HOME and the platform in it."""

    home: Path
    port: int
    grpc_port: int = field(default_factory=free_port)
    key: str = "test-key-of-the-first-workspace"
    seconds: float = 0.0
    _seen: set[int] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def env(self) -> dict[str, str]:
        return {"LEPTON_HOME": str(self.home), "LEPTON_URL": self.url, "LEPTON_API_KEY": self.key}

    def up(self) -> "Platform":
        """Starts it; raises AssertionError with its words when it does not start."""
        started = time.monotonic()
        done = lepton("up", "--detach", "--json", "--port", str(self.port), "--grpc-port", str(self.grpc_port), env=self.env)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.log()}"
        self.seconds = time.monotonic() - started
        return self

    def down(self) -> None:
        """Stops it as a user would; nothing of it may be left."""
        processes = self.processes()
        done = lepton("down", env=self.env)
        assert done.returncode == 0, done.stderr
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"left running: {left}"

    def pid(self) -> int:
        return int(json.loads((self.home / "running.json").read_text())["pid"])

    def processes(self) -> list[psutil.Process]:
        """The platform and everything that it started."""
        try:
            platform = psutil.Process(self.pid())
            return [platform, *platform.children(recursive=True)]
        except (psutil.Error, OSError):
            return []

    def kill(self) -> None:
        """kill -9 of the platform; returns once it and all that it started are gone."""
        processes = self.processes()
        os.kill(self.pid(), signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=10)
        left = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"left running: {left}"

    def log(self) -> str:
        """The end of its log, for a failing test's message."""
        path = self.home / "logs" / "platform.log"
        return path.read_text()[-4000:] if path.exists() else ""


@contextmanager
def running(home: Path, **options: Any) -> Iterator[Platform]:
    """A platform for the block; whatever happens nothing of it stays."""
    platform = Platform(home, free_port(), **options)
    try:
        yield platform.up()
    finally:
        for process in platform.processes():
            try:
                process.kill()
            except psutil.Error:
                continue


def eventually(check: Any, timeout: float = 30.0, interval: float = 0.1) -> Any:
    """The first truthy answer of `check()`; its last one, falsy, when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(interval)
