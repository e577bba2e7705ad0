"""Folders for the engine's jobs, and the removal of those that a killed process has left. Knows nothing of the jobs."""

import fcntl
import os
import shutil
from pathlib import Path

from libs.db import new_id


class Desk:
    """One process's folder under `work_dir`, locked for as long as the process lives: folders beside it that nobody locks are left over."""

    def __init__(self, work_dir: Path, name: str) -> None:
        self._work_dir, self._root = work_dir, work_dir / name
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the folder, and removes what others have left. Again: nothing."""
        if self._lock is not None:
            return
        self._root.mkdir(parents=True)
        self._lock = os.open(self._root / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for other in self._work_dir.iterdir():
            if other != self._root and _is_left_over(other):
                shutil.rmtree(other, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder."""
        if self._lock is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def folder(self, word: str) -> Path:
        """A new folder for one job, whatever others are called; its user removes it."""
        path = self._root / new_id(word)
        path.mkdir()
        return path


def _is_left_over(other: Path) -> bool:
    try:
        lock = os.open(other / "lock", os.O_RDWR)
    except OSError:
        # Being made, being removed, or none of ours.
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
