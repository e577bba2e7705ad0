"""Work with a lease in its row, as services have it, on the smallest table; and a worker process that does it.

`python -m tests.integration.tasks.desk URL FILE SECONDS LEASE` says "claimed ID" and "done ID".
"""

import asyncio
import sqlite3
import sys
import time
from pathlib import Path

from libs.lifecycle import Lifecycle
from libs.tasks import TaskQueue, Worker


class Desk:
    """Rows that say what is to be done. Whoever claims one has it until its lease runs out; who lost it cannot finish it."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, timeout=10, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS work (id TEXT PRIMARY KEY, token INT, expires REAL, done INT)")
        self._database.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT, token INT)")

    def put(self, name: str) -> None:
        self._database.execute("INSERT INTO work VALUES (?, 0, 0, 0)", (name,))

    def claim(self, name: str, seconds: float) -> int:
        """A token, or 0 where it is done or somebody has it."""
        now = time.time()
        rows = self._database.execute(
            "UPDATE work SET token = token + 1, expires = ? WHERE id = ? AND done = 0 AND expires < ? RETURNING token",
            (now + seconds, name, now),
        ).fetchall()
        return int(rows[0][0]) if rows else 0

    def renew(self, name: str, token: int, seconds: float) -> None:
        self._database.execute("UPDATE work SET expires = ? WHERE id = ? AND token = ?", (time.time() + seconds, name, token))

    def finish(self, name: str, token: int) -> bool:
        self._database.execute("BEGIN IMMEDIATE")
        mine = self._database.execute("UPDATE work SET done = 1 WHERE id = ? AND token = ? AND done = 0", (name, token)).rowcount
        if mine:
            self._database.execute("INSERT INTO effects VALUES (?, ?)", (name, token))
        self._database.execute("COMMIT")
        return bool(mine)

    def waiting(self) -> list[str]:
        """What a reconciler would send hints of."""
        rows = self._database.execute("SELECT id FROM work WHERE done = 0 AND expires < ?", (time.time(),))
        return [row[0] for row in rows]

    def effects(self) -> list[tuple[str, int]]:
        return self._database.execute("SELECT id, token FROM effects ORDER BY id").fetchall()


def register(queue: TaskQueue, desk: Desk, *, seconds: float, lease: float) -> None:
    """A task that works for `seconds` under a lease that it renews."""

    async def work(name: str) -> None:
        token = desk.claim(name, lease)
        if not token:
            print(f"taken {name}", flush=True)
            return
        print(f"claimed {name}", flush=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(lease / 4)
            desk.renew(name, token, lease)
        if desk.finish(name, token):
            print(f"done {name}", flush=True)

    queue.register("work", work)


async def main(url: str, file: str, seconds: float, lease: float) -> None:
    queue = TaskQueue("tests", url)
    register(queue, Desk(Path(file)), seconds=seconds, lease=lease)
    await Lifecycle([queue, Worker([queue], concurrency=4)]).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
