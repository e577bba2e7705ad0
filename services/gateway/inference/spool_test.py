"""What was used is told once, whatever dies."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from libs.errors import AppError, Invalid, Transient
from services.gateway.inference.spool import Spool


class Taker:
    """Remembers what it was told, by name; the same name again is the same."""

    def __init__(self) -> None:
        self.taken: dict[str, list[list[Any]]] = {}
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self, name: str, lines: list[list[Any]]) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        assert self.taken.setdefault(name, lines) == lines

    @property
    def lines(self) -> list[list[Any]]:
        return sorted(line for lines in self.taken.values() for line in lines)


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def until(check: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0.02)


async def test_lines_are_taken_once_and_gone(tmp_path: Path) -> None:
    take = Taker()
    spool = Spool(tmp_path, take)
    await spool.start()
    for number in range(5):
        spool.write("a", number)
    await until(lambda: len(take.lines) == 5)
    spool.write("b", 1)
    await spool.stop()
    assert take.lines == [["a", 0], ["a", 1], ["a", 2], ["a", 3], ["a", 4], ["b", 1]]
    assert left(tmp_path) == []


async def test_what_nobody_takes_stays_for_the_next_process(tmp_path: Path) -> None:
    away = Taker()
    away.error = Transient("away")
    spool = Spool(tmp_path, away)
    await spool.start()
    spool.write("a", 1)
    await until(lambda: away.calls)
    spool.write("a", 2)
    await spool.stop()
    take = Taker()
    again = Spool(tmp_path, take)
    await again.start()
    await until(lambda: len(take.lines) == 2)
    await again.stop()
    assert take.lines == [["a", 1], ["a", 2]]


async def test_a_segment_that_is_refused_is_kept_for_a_look_and_holds_up_nothing(tmp_path: Path) -> None:
    take = Taker()
    take.error = Invalid("no")
    spool = Spool(tmp_path, take)
    await spool.start()
    spool.write("bad")
    await until(lambda: take.calls)
    take.error = None
    spool.write("good")
    await until(lambda: take.lines == [["good"]])
    await spool.stop()
    [refused] = left(tmp_path)
    assert (refused.suffix, refused.read_bytes()) == (".refused", b'["bad"]\n')


async def test_a_torn_line_is_the_last_and_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "dead.open").write_bytes(b'["a",1]\n["a",')
    take = Taker()
    spool = Spool(tmp_path, take)
    await spool.start()
    await until(lambda: take.calls)
    await spool.stop()
    assert take.lines == [["a", 1]]


WRITER = """
import asyncio, sys
from pathlib import Path
from services.gateway.inference.spool import Spool
async def take(name, lines):
    with open(sys.argv[2], "a") as told:
        told.writelines(f"{name} {line[0]}\\n" for line in lines)
async def main():
    spool = Spool(Path(sys.argv[1]), take)
    await spool.start()
    for number in range(1_000_000):
        spool.write(number)
        print(number, flush=True)
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


@pytest.mark.timeout(60)
async def test_a_line_that_was_written_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    """What was told before the kill and what the next process finds are together what was written, each line once."""
    spool_dir, told = tmp_path / "spool", tmp_path / "told"
    for _ in range(3):
        told.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WRITER,
            str(spool_dir),
            str(told),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout
        for _ in range(900):
            assert await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        written = 900 + rest.count(b"\n")
        await process.wait()
        segments = {tuple(line.split()) for line in told.read_text().splitlines()} if told.exists() else set()
        take = Taker()
        spool = Spool(spool_dir, take)
        await spool.start()
        await until(lambda: not list(spool_dir.glob("*.sealed")) and len(list(spool_dir.glob("*.open"))) == 1)
        await spool.stop()
        found = segments | {(name, str(line[0])) for name, lines in take.taken.items() for line in lines}
        numbers = sorted(int(number) for _, number in found)
        # The last number may have been written and not printed.
        assert numbers in (list(range(written)), list(range(written + 1)))


async def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    take = Taker()
    spools = [Spool(tmp_path, take) for _ in range(2)]
    for spool in spools:
        await spool.start()
    for number in range(100):
        spools[number % 2].write(number)
        await asyncio.sleep(0.02)
    for spool in spools:
        await spool.stop()
    assert take.lines == [[number] for number in range(100)]
    assert left(tmp_path) == []


async def test_a_full_disk_refuses_the_line_and_tears_none(tmp_path: Path) -> None:
    """By a limit on the size of this process's files, which is what a disk with a little room left does."""
    take = Taker()
    away = Transient("away")
    take.error = away
    spool = Spool(tmp_path, take)
    await spool.start()
    spool.write("a", 1)
    before, taught = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))
    try:
        with pytest.raises(AppError, match="disk") as refused:
            spool.write("a", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, taught)
    assert refused.value.code == "storage_full"
    spool.write("a", 3)
    take.error = None
    await spool.stop()
    assert take.lines == [["a", 1], ["a", 3]]
