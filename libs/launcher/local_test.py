"""Children end as asked, as limited, and with their owner; nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from libs.launcher import Exit, Launch, LaunchError, SubprocessLauncher
from libs.launcher.identity import handle_of

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG")

SLEEP = "import time; time.sleep(600)"
WITH_GRANDCHILD = """
import pathlib, subprocess, sys, time
here = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
away = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1] + ".new").write_text(f"{here.pid} {away.pid}")
pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
time.sleep(600)
"""
OWNER = """
import asyncio, os, pathlib, sys
from libs.launcher import Launch, SubprocessLauncher
async def main():
    process = await SubprocessLauncher().start(Launch("child", [sys.executable, "-c", *sys.argv[2:]]))
    pathlib.Path(sys.argv[1] + ".new").write_text(str(process.pid))
    pathlib.Path(sys.argv[1] + ".new").rename(sys.argv[1])
    await process.wait()
asyncio.run(main())
"""


def python(code: str, *args: str | Path, **options: object) -> Launch:
    return Launch("test", [sys.executable, "-c", code, *args], **options)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def written(path: Path) -> str:
    assert await asyncio.to_thread(eventually, path.exists, 10)
    return await asyncio.to_thread(path.read_text)


def start_owner(pid_file: Path, *child: str | Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER, pid_file, *child])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    assert eventually(lambda: {process.pid for process in psutil.Process().children(recursive=True)} <= before)


@pytest.fixture
def launcher() -> SubprocessLauncher:
    return SubprocessLauncher()


async def test_a_program_runs_in_its_folder_with_its_environment_and_nothing_else(launcher: SubprocessLauncher, tmp_path: Path) -> None:
    folder = tmp_path / "with space und ümlaut"
    folder.mkdir()
    os.environ["LEPTON_TEST_SECRET"] = "not for children"
    code = "import os, sys; print(os.getcwd(), os.environ['WORD'], 'LEPTON_TEST_SECRET' in os.environ); sys.exit('err')"
    env = {"WORD": "grüße", "PYTHONUTF8": "1"}
    process = await launcher.start(python(code, env=env, cwd=folder, stdout=folder / "out ö.log", stderr=folder / "err.log"))
    assert await process.wait() == Exit(1)
    assert (folder / "out ö.log").read_text().split("\n")[0] == f"{folder} grüße False"
    assert (folder / "err.log").read_text() == "err\n"
    assert not process.alive()


async def test_what_cannot_be_run_is_said_at_once(launcher: SubprocessLauncher, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        await launcher.start(Launch("test", ["/no/such/program"]))
    with pytest.raises(LaunchError, match="No such file"):
        await launcher.start(Launch("test", ["ls"], cwd=tmp_path / "missing"))
    with pytest.raises(LaunchError, match="denied"):
        await launcher.start(Launch("test", [tmp_path]))


async def test_stop_asks_first_and_then_kills(launcher: SubprocessLauncher, tmp_path: Path) -> None:
    polite = await launcher.start(python(SLEEP))
    assert await polite.stop(5) == Exit(None, signal.SIGTERM)
    ready = tmp_path / "ready"
    stubborn = await launcher.start(
        python("import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').close()\nwhile True: signal.pause()", ready)
    )
    await written(ready)
    start = time.monotonic()
    assert await stubborn.stop(0.3) == Exit(None, signal.SIGKILL)
    assert 0.25 < time.monotonic() - start < 2


async def test_a_program_that_hangs_is_killed(launcher: SubprocessLauncher) -> None:
    process = await launcher.start(python(SLEEP))
    os.kill(process.pid, signal.SIGSTOP)
    # Until it has stopped, it would still see what comes next.
    assert await asyncio.to_thread(eventually, lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    assert process.alive()
    assert (await process.stop(0.2)).signal == signal.SIGKILL


async def test_grandchildren_end_too(launcher: SubprocessLauncher, tmp_path: Path) -> None:
    process = await launcher.start(python(WITH_GRANDCHILD, tmp_path / "pids"))
    here, away = (int(pid) for pid in (await written(tmp_path / "pids")).split())
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == Exit(None, signal.SIGKILL)
    assert gone(here)
    if sys.platform == "linux":
        assert gone(away)
    else:
        os.kill(away, signal.SIGKILL)


async def test_too_much_memory_is_told_apart(launcher: SubprocessLauncher) -> None:
    limit = 64 * 2**20
    greedy = await launcher.start(python("import time; x = bytearray(200 * 2**20); time.sleep(60)", memory_bytes=limit))
    modest = await launcher.start(python("import time; x = bytearray(2**20); time.sleep(0.5)", memory_bytes=limit))
    exit = await greedy.wait()
    assert exit.oom and str(exit) == "out of memory"
    assert await modest.wait() == Exit(0)


async def test_memory_of_children_counts(launcher: SubprocessLauncher) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; x = bytearray(200 * 2**20); time.sleep(60)'])"
    process = await launcher.start(python(code, memory_bytes=64 * 2**20))
    assert (await process.wait()).oom


@pytest.mark.parametrize("hung", [False, True], ids=["running", "stopped"])
async def test_kill_9_of_the_owner_ends_the_child(tmp_path: Path, hung: bool) -> None:
    owner = start_owner(tmp_path / "pid", WITH_GRANDCHILD, tmp_path / "pids")
    child = int(await written(tmp_path / "pid"))
    grandchildren = [int(pid) for pid in (await written(tmp_path / "pids")).split()]
    if hung:
        os.kill(child, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    assert eventually(lambda: gone(child) and gone(grandchildren[0]))
    if sys.platform == "linux":
        assert eventually(lambda: gone(grandchildren[1]))
    else:
        os.kill(grandchildren[1], signal.SIGKILL)


@linux_only
async def test_kill_9_of_the_nanny_ends_the_child(launcher: SubprocessLauncher, tmp_path: Path) -> None:
    process = await launcher.start(python(WITH_GRANDCHILD, tmp_path / "pids"))
    here, away = (int(pid) for pid in (await written(tmp_path / "pids")).split())
    os.kill(process._nanny.pid, signal.SIGKILL)
    assert await process.wait() == Exit(None, signal.SIGKILL)
    assert eventually(lambda: gone(process.pid) and gone(here))
    os.kill(away, signal.SIGKILL)  # A daemon of a program whose nanny was shot: beyond reach.


@linux_only
async def test_kill_9_of_owner_and_nanny_at_once_ends_the_child(tmp_path: Path) -> None:
    owner = start_owner(tmp_path / "pid", SLEEP)
    child = int(await written(tmp_path / "pid"))
    nanny = psutil.Process(child).ppid()
    os.kill(nanny, signal.SIGSTOP)
    owner.kill()
    os.kill(nanny, signal.SIGKILL)
    owner.wait()
    assert eventually(lambda: gone(child))


async def test_a_stopped_nanny_does_not_keep_its_child_alive(launcher: SubprocessLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.launcher.local.SLACK_SECONDS", 0.1)
    process = await launcher.start(python(SLEEP))
    os.kill(process._nanny.pid, signal.SIGSTOP)
    assert (await process.stop(0.1)).signal == signal.SIGKILL
    assert eventually(lambda: gone(process.pid))


async def test_many_at_once(launcher: SubprocessLauncher) -> None:
    processes = await asyncio.gather(*(launcher.start(Launch(str(n), ["sleep", "600"])) for n in range(20)))
    assert all(process.alive() for process in processes)
    exits = await asyncio.gather(*(process.stop(2) for process in processes))
    assert set(exits) == {Exit(None, signal.SIGTERM)}


async def test_a_handle_names_one_process_only(launcher: SubprocessLauncher) -> None:
    process = await launcher.start(Launch("test", ["sleep", "600"]))
    pid, _, birth = process.handle.partition(":")
    assert process.handle == handle_of(process.pid)
    assert not await launcher.end(f"{pid}:1{birth}")
    assert process.alive()
    assert await launcher.end(process.handle)
    assert (await process.wait()).signal == signal.SIGKILL
    assert not await launcher.end(process.handle)
    assert not await launcher.end("")


async def test_a_watched_start_is_quick_and_its_nanny_small(launcher: SubprocessLauncher) -> None:
    process = await launcher.start(Launch("test", ["sleep", "600"]))
    assert psutil.Process(process._nanny.pid).memory_info().rss < 14 * 2**20
    await process.stop(0)
