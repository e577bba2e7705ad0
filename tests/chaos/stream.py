"""A steady stream of predictions from a thread: each sent once, on its own time, whatever becomes of those before; counted by phase."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

from tests.platform import Reachable

RECORD = b'{"instances":[{"x":1.5}]}'
# Of a request whose replica died after the first byte of its answer: nobody can ask again.
BEGUN = "broke off in the middle"


@dataclass
class Phase:
    """What became of the requests that were sent while it lasted."""

    name: str
    sent: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Of the table."""
        took = sorted(self.seconds) or [0.0]
        spread = "".join(f"{took[min(len(took) - 1, len(took) * part // 100)] * 1e3:>10.1f}" for part in (50, 95, 99))
        kinds = Counter("begun" if BEGUN in failure else failure.partition(" ")[0] for failure in self.failures)
        failed = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "0"
        return f"{self.name:<34}{self.sent:>9}{self.answers[200]:>10}{spread}{took[-1]:>9.2f}  {failed}"


class Stream:
    """`rate` requests a second."""

    def __init__(self, platform: Reachable, rate: float, endpoint: str = "line") -> None:
        self._platform, self._rate, self._path = platform, rate, f"/v1/endpoints/{endpoint}/predict"
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="stream", daemon=True)
        self.phases = [Phase("steady")]

    @property
    def sent(self) -> int:
        return sum(phase.sent for phase in self.phases)

    @property
    def answers(self) -> Counter[int]:
        return sum((phase.answers for phase in self.phases), Counter())

    @property
    def failures(self) -> list[str]:
        return [failure for phase in self.phases for failure in phase.failures]

    @contextlib.contextmanager
    def flowing(self) -> Iterator["Stream"]:
        """Ends once the last one is answered, and prints the table."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(90)
            print(f"\n{self.table()}")
            assert not self._thread.is_alive(), "some requests have no answer yet"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """What is sent in the block is counted under this name, what follows as steady again."""
        found = Phase(name)
        self.phases += [found]
        try:
            yield found
        finally:
            self.phases += [Phase("… and after it")]

    def table(self) -> str:
        """A line a phase."""
        head = f"{'phase':<34}{'sent':>9}{'answered':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'most s':>9}  failed"
        whole = Phase("all", self.sent, self.answers, self.failures, [each for phase in self.phases for each in phase.seconds])
        return "\n".join([head, *(phase.row() for phase in self.phases if phase.sent), whole.row()])

    async def _run(self) -> None:
        headers = {"authorization": f"Bearer {self._platform.key}", "content-type": "application/json"}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        async with aiohttp.ClientSession(self._platform.url, headers=headers, connector=connector) as session:
            tasks: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not self._over.is_set():
                task = asyncio.create_task(self._ask(session, self.phases[-1], due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due += 1 / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, phase: Phase, due: float) -> None:
        phase.sent += 1
        try:
            async with session.post(self._path, data=RECORD) as response:
                body = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            phase.failures.append(repr(error))
            return
        phase.answers[response.status] += 1
        phase.seconds.append(time.monotonic() - due)
        if response.status != 200:
            phase.failures.append(f"{response.status} {body[:300]}")
