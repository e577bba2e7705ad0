"""LEPTON_HOME: the one folder that holds everything a platform on one machine keeps.

Knows where things lie and who may use them; not what they mean.
"""

import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

LEAST_FREE_BYTES = 64 * 2**20


class HomeError(Exception):
    """The folder or the address cannot be used: what is wrong, and what would be right."""

    def __init__(self, wrong: str, right: str) -> None:
        super().__init__(wrong)
        self.wrong, self.right = wrong, right


@dataclass(frozen=True)
class Running:
    """What a platform says of itself in its home while it runs."""

    pid: int
    # Of the process, so that another one with its number is not taken for it.
    started: float
    url: str
    sockets: str
    broker: str = ""
    # Where inference is answered over gRPC, "host:port".
    grpc: str = ""

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class Home:
    """The folder at `path`; made when it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.artifacts = self.path / "artifacts"
        self.logs = self.path / "logs"
        self.work = self.path / "work"
        self.events = self.path / "events.db"
        self._lock: IO[str] | None = None

    @classmethod
    def default(cls) -> "Home":
        """By the environment, else ~/.lepton."""
        return cls(Path(os.environ.get("LEPTON_HOME") or "~/.lepton"))

    def database(self, name: str) -> str:
        """URL of the SQLite file of a service."""
        return f"sqlite+aiosqlite:///{self.path / 'databases' / name}.db"

    def prepare(self) -> None:
        """Makes the folder usable by this process alone; raises HomeError when it is not."""
        try:
            for folder in (self.path, self.artifacts, self.logs, self.work, self.path / "databases"):
                folder.mkdir(parents=True, exist_ok=True)
            self.path.chmod(stat.S_IRWXU)
            self._lock = self._locked()
            (self.path / "writable").write_text("")
        except OSError as error:
            raise HomeError(
                f"{self.path} cannot be used: {error.strerror or error}", "set LEPTON_HOME to a folder that you may write to"
            ) from error
        free = shutil.disk_usage(self.path).free
        if free < LEAST_FREE_BYTES:
            raise HomeError(
                f"the disk that holds {self.path} has {free // 2**20} MiB left", f"free at least {LEAST_FREE_BYTES // 2**20} MiB of it"
            )

    def _locked(self) -> IO[str]:
        lock = (self.path / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            running = self.running()
            who = f" by process {running.pid}, at {running.url}" if running else ""
            raise HomeError(f"{self.path} is in use{who}", "end it with 'lepton down', or set LEPTON_HOME to another folder") from None
        return lock

    def release(self) -> None:
        """Lets others use the folder."""
        (self.path / "running.json").unlink(missing_ok=True)
        if self._lock:
            self._lock.close()

    def kept(self, name: str, make: Callable[[], str]) -> str:
        """A secret of the platform, made the first time."""
        path = self.path / name
        if not path.exists():
            _write_private(path, make())
        return path.read_text()

    def first_key(self) -> str:
        """The key that a new platform begins with, until `forget_first_key` says that somebody has seen it; empty for one with a past."""
        path = self.path / "first-key"
        if not path.exists():
            if (self.path / "databases" / "accounts.db").exists():
                return ""
            _write_private(path, f"lpt_{secrets.token_urlsafe(32)}")
        return path.read_text()

    def forget_first_key(self) -> None:
        """From now on only its hash is kept."""
        (self.path / "first-key").unlink(missing_ok=True)

    def announce(self, running: Running) -> None:
        """Says that the platform runs, and where."""
        _write_private(self.path / "running.json", json.dumps(asdict(running)))

    def running(self) -> Running | None:
        """The platform that runs in this folder, if one does."""
        left = self.left_behind()
        return left if left and left.alive else None

    def left_behind(self) -> Running | None:
        """What the last platform said of itself, alive or not."""
        try:
            said: dict[str, Any] = json.loads((self.path / "running.json").read_text())
            return Running(**said)
        except (OSError, ValueError, TypeError):
            return None

    def sockets(self) -> Path:
        """A new folder for sockets, whose paths must be short; that of a platform that was killed is removed."""
        left = self.left_behind()
        if left and Path(left.sockets).name.startswith("lepton-"):
            shutil.rmtree(left.sockets, ignore_errors=True)
            if left.broker:
                shutil.rmtree(Path(left.broker.partition("://")[2]).parent, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix="lepton-"))


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and for this user only."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
