"""Requests at a steady rate, whatever becomes of those before, by a process of its own: `python -m tests.load` reads a Load from stdin.

Times are from when a request was due, so that a client that is late says so.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple


class Answer(NamedTuple):
    """0: no answer."""

    status: int
    seconds: float
    # Since the load began.
    at: float
    retry_after: int


@dataclass
class Load:
    """`rate` a second for `seconds`; of `clients` that each wait for their answer where the rate is 0."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    seconds: float
    rate: float = 0.0
    clients: int = 1

    def run(self) -> list[Answer]:
        """By a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.load"], input=json.dumps(asdict(self)), stdout=subprocess.PIPE, text=True, check=True
        )
        return [Answer(*each) for each in json.loads(done.stdout)]


class Client:
    """Connections that are kept while they answer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(load.body)), **load.headers}
        head = f"POST {load.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._message = f"{head}\r\n{load.body}".encode()
        self.answers: list[Answer] = []
        self.began = time.monotonic()

    async def ask(self, due: float) -> None:
        """Once, at the time that was due."""
        try:
            status, retry_after = await self._exchange()
        except (OSError, asyncio.IncompleteReadError):
            status, retry_after = 0, 0
        now = time.monotonic()
        self.answers.append(Answer(status, now - due, now - self.began, retry_after))

    async def _exchange(self) -> tuple[int, int]:
        # Of what waited too long the server has hung up.
        while self._idle and self._idle[-1][0].at_eof():
            self._idle.pop()[1].close()
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._load.port)
        writer.write(self._message)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines if line)
        await reader.readexactly(int(headers.get(b"content-length", b"0")))
        if headers.get(b"connection") == b"close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(first.split()[1]), int(headers.get(b"retry-after", b"0"))


async def send(load: Load) -> list[Answer]:
    client = Client(load)
    until = client.began + load.seconds

    async def again() -> None:
        while (now := time.monotonic()) < until:
            await client.ask(now)

    if not load.rate:
        await asyncio.gather(*(again() for _ in range(load.clients)))
        return client.answers
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(load.seconds * load.rate)):
            due = client.began + number / load.rate
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            tasks.create_task(client.ask(due))
    return client.answers


def goodput(answers: list[Answer], seconds: float) -> float:
    """Answers a second while the load lasted."""
    return sum(answer.status == 200 and answer.at <= seconds for answer in answers) / seconds


def percentile(answers: list[Answer], status: int, part: float) -> float:
    """Seconds; 0 where none has that status."""
    took = sorted(answer.seconds for answer in answers if answer.status == status)
    return took[min(len(took) - 1, int(len(took) * part))] if took else 0.0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(send(Load(**json.load(sys.stdin))))))
