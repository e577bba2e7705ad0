"""The child process: its answers, its limits, and that it dies with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from libs.errors import Invalid
from services.data.engine.database import translate
from services.data.engine.limits import MIB, Limits
from services.data.engine.process import EngineFailed, run
from services.data.engine.sample_files import ALBUM, zipped


def upload(folder: Path, content: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(content)
    return path


def work(folder: Path, name: str = "job") -> Path:
    made = folder / name
    made.mkdir()
    return made


async def test_results_and_refusals_come_back(tmp_path: Path) -> None:
    source = upload(tmp_path, zipped(ALBUM))
    answer = await run("ingest", {"path": str(source), "file_name": "a.zip"}, work(tmp_path), Limits())
    assert answer["rows"] == 3
    path = str(tmp_path / "job" / "all.parquet")
    shown = await run("preview", {"path": path, "rows": 1}, work(tmp_path, "preview"), Limits())
    assert shown["rows"] == [{"image": {"width": 8, "height": 8, "bytes": len(ALBUM["cat/1.png"])}, "label": "cat", "path": "cat/1.png"}]
    with pytest.raises(Invalid) as caught:
        await run("ingest", {"path": str(upload(tmp_path, b"a,a\n1,2\n")), "file_name": ""}, work(tmp_path, "bad"), Limits())
    assert caught.value.errors[0].field == "line 1, column 2"


async def test_too_little_memory_is_said(tmp_path: Path) -> None:
    source = upload(tmp_path, b"a,b\n" + b"".join(b"%d,%d\n" % (number, number * 7919) for number in range(2_000_000)))
    limits = Limits(memory_bytes=20 * MIB, file_bytes=30 * MIB)
    with pytest.raises(Invalid) as caught:
        await run("ingest", {"path": str(source), "file_name": "a.csv"}, work(tmp_path), limits)
    assert caught.value.code in ("out_of_memory", "too_large")


async def test_a_job_that_never_ends_is_ended(tmp_path: Path) -> None:
    source = upload(tmp_path, b"a\n" + b"1\n" * 100)
    columns = [{"name": "a", "type": "integer"}]
    endless = {"derive": {"column": "b", "expression": "list_sum(range(20000000)) + list_sum(range(a, 20000000))"}}
    answer = await run("ingest", {"path": str(source), "file_name": "a.csv"}, work(tmp_path), Limits())
    job = {"columns": columns, "splits": [{"name": "all", "path": str(tmp_path / "job" / answer["splits"][0]["file"])}], "steps": [endless]}
    began = time.monotonic()
    with pytest.raises(Invalid) as caught:
        await run("transform", job, work(tmp_path, "long"), Limits(wall_seconds=2))
    assert caught.value.code in ("time_limit", "out_of_memory")
    assert time.monotonic() - began < 10


async def test_a_cancelled_call_leaves_no_process(tmp_path: Path) -> None:
    source = upload(tmp_path, b"a,b\n" + b"".join(b"%d,%d\n" % (number, number) for number in range(3_000_000)))
    task = asyncio.create_task(run("ingest", {"path": str(source), "file_name": "a.csv"}, work(tmp_path), Limits()))
    await asyncio.sleep(0.4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engines(tmp_path)


async def test_a_child_that_breaks_is_no_refusal(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed):
        await run("no such kind", {}, work(tmp_path), Limits())


def test_the_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    source = upload(tmp_path, b"a,b\n" + b"".join(b"%d,%d\n" % (number, number) for number in range(3_000_000)))
    program = (
        "import asyncio, pathlib\nfrom services.data.engine.process import run\nfrom services.data.engine.limits import Limits\n"
        f"asyncio.run(run('ingest', {{'path': {str(source)!r}, 'file_name': 'a.csv'}}, pathlib.Path({str(work(tmp_path))!r}), Limits()))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    until(lambda: engines(tmp_path))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not engines(tmp_path))


def engines(folder: Path) -> list[psutil.Process]:
    """Living engine processes that work in the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            str(folder) in part for part in process.info["cmdline"] or [] if "spec.json" in part
        ):
            found.append(process)
    return found


def until(condition: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


async def test_a_preview_is_never_too_much(tmp_path: Path) -> None:
    wide = ",".join(f"c{number}" for number in range(600))
    row = ",".join(["x" * 1500] * 600)
    source = upload(tmp_path, "\n".join([wide, *[row] * 30]).encode())
    answer = await run("ingest", {"path": str(source), "file_name": "a.csv"}, work(tmp_path), Limits())
    assert answer["rows"] == 30
    shown = await run("preview", {"path": str(tmp_path / "job" / "all.parquet"), "rows": 1000}, work(tmp_path, "preview"), Limits())
    assert 10 < len(shown["rows"]) < 20
    assert shown["rows"][0]["c0"] == "x" * 1000 + "…"


def test_what_the_kernel_says_is_said_in_words() -> None:
    for text, code in (
        ("No space left on device", "storage_full"),
        ("File too large", "too_large"),
        ("malloc of size 5 failed", "out_of_memory"),
    ):
        known = translate(OSError(text))
        assert known is not None
        assert known.code == code
    assert translate(ValueError("anything")) is None
