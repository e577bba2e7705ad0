"""Where a process keeps folders of what it runs, and model packages: one process at a time, and the next one knows who was before."""

import fcntl
import shutil
from pathlib import Path
from typing import IO

from libs.errors import Conflict


class WorkFolder:
    """`root` belongs to the process that holds its lock. The kernel lets go of the lock when that process dies, wherever it ran."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.replicas, self.batches, self.packages = root / "replicas", root / "batches", root / "packages"
        self._lock: IO[str] | None = None

    def open(self) -> str:
        """Takes it, without what was left in it; answers who had it before and is dead. Raises Conflict while another process has it."""
        for folder in (self.replicas, self.batches, self.packages):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (self._root / "owner").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise Conflict(f"{self._root} is another process's work folder; LEPTON_DEPLOYMENT_WORK_DIR gives each its own") from error
        self._lock = lock
        for left in (*self.replicas.iterdir(), *self.batches.iterdir()):
            shutil.rmtree(left, ignore_errors=True)
        lock.seek(0)
        return lock.read().strip()

    def sign(self, owner: str) -> None:
        """From now on the next process hears of `owner`; once what was before is seen to."""
        assert self._lock
        self._lock.truncate(0)
        self._lock.write(owner)
        self._lock.flush()

    def close(self) -> None:
        """Lets others have it."""
        if self._lock:
            self._lock.close()
