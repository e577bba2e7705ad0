"""What every launcher does."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.launcher import Exit, Launch, Launcher, LaunchError, LauncherSettings, Process
from tests.pods import folder, launcher_settings, running_launcher

__all__ = ["folder"]

SLEEP = ["python", "-c", "import time; print('up', flush=True); time.sleep(600)"]
DEAF = ["python", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"]


class Grouped:
    """Starts all in one group."""

    def __init__(self, launcher: Launcher, group: str) -> None:
        self._launcher, self._group = launcher, group
        self.end, self.forget = launcher.end, launcher.forget

    async def start(self, launch: Launch) -> Process:
        return await self._launcher.start(replace(launch, group=self._group))


@pytest.fixture(params=["", "line-1"], ids=["alone", "grouped"])
def group(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Workers of one run are never a group: replicas answer alone.
alone = pytest.mark.parametrize("group", [""], ids=["alone"], indirect=True)


@pytest.fixture(params=["subprocess:", "kubernetes:"])
async def launcher(request: pytest.FixtureRequest, group: str) -> AsyncIterator[Launcher]:
    settings = LauncherSettings() if request.param == "subprocess:" else launcher_settings()
    async with running_launcher(settings) as running:
        yield Grouped(running, group)


def launch(folder: Path, argv: list[str], **changed: Any) -> Launch:
    out = folder / "out"
    return Launch("Test.1", argv, **({"cwd": folder, "stdout": out, "stderr": out, "memory_bytes": 64 << 20} | changed))


def python(code: str) -> list[str]:
    return ["python", "-c", code]


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (another process's files)
            await asyncio.sleep(0.05)


async def up(folder: Path) -> None:
    await until(lambda: (folder / "out").exists() and b"up" in (folder / "out").read_bytes())


async def ended(process: Process) -> Exit:
    async with asyncio.timeout(90):
        return await process.wait()


async def test_a_program_runs_where_and_as_asked(launcher: Launcher, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_SECRET", "the owner's")
    code = (
        "import os, sys; print(os.getcwd(), os.environ['SAID'], 'LEPTON_SECRET' in os.environ); print('oh', file=sys.stderr); sys.exit(7)"
    )
    process = await launcher.start(launch(folder, python(code), env={"SAID": "hello"}, stderr=folder / "err"))
    assert await ended(process) == Exit(7)
    assert await ended(process) == Exit(7)
    assert not process.alive()
    assert (folder / "out").read_text() == f"{folder} hello False\n"
    assert (folder / "err").read_text() == "oh\n"


async def test_files_go_to_and_fro(launcher: Launcher, folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "model").write_text("weights")
    (folder / "spec").write_text("wanted")
    (folder / "tmp").mkdir()
    code = f"""
import pathlib, sys
made = pathlib.Path("made"); made.mkdir()
(made / "result").write_text(pathlib.Path("spec").read_text() + pathlib.Path({str(given / "model")!r}).read_text())
pathlib.Path("tmp/scratch").write_text("x")
print("told", file=open("events", "a"))
"""
    wanted = launch(folder, python(code), inputs=[given], journals=[folder / "events"], env={"TMPDIR": str(folder / "tmp")})
    process = await launcher.start(wanted)
    assert await ended(process) == Exit(0)
    assert (folder / "made" / "result").read_text() == "wantedweights"
    assert (folder / "events").read_text() == "told\n"


async def test_output_is_heard_while_it_runs(launcher: Launcher, folder: Path) -> None:
    process = await launcher.start(launch(folder, SLEEP))
    assert process.alive()
    await up(folder)
    exit = await process.stop(5)
    assert exit == Exit(None, signal.SIGTERM)
    assert not process.alive()


async def test_the_deaf_are_killed_after_their_grace(launcher: Launcher, folder: Path) -> None:
    process = await launcher.start(launch(folder, DEAF))
    await up(folder)
    assert await process.stop(0.5) == Exit(None, signal.SIGKILL)


async def test_at_once_is_at_once(launcher: Launcher, folder: Path) -> None:
    process = await launcher.start(launch(folder, SLEEP))
    await up(folder)
    began = time.monotonic()
    assert not (await process.stop(0)).ok
    assert time.monotonic() - began < 20


@alone
async def test_workers_find_each_other_and_the_first_is_heard(launcher: Launcher, folder: Path) -> None:
    """On one machine one program starts them; in a cluster each is a pod, and the first has a name."""
    code = """
import os, socket, time
count, number = int(os.environ.get("PET_NNODES", "1")), int(os.environ.get("PET_NODE_RANK", "0"))
print(count * int(os.environ["PET_NPROC_PER_NODE"]), "workers", flush=True)
if count > 1:
    host, port = os.environ["PET_RDZV_ENDPOINT"].split(":")
    if number == 0:
        server = socket.create_server(("", int(port)))
        for _ in range(count - 1):
            server.accept()[0].sendall(b"hello")
    else:
        while True:
            try:
                assert socket.create_connection((host, int(port)), 5).recv(5) == b"hello"
                break
            except OSError:
                time.sleep(0.2)
    open("mine", "w").write(str(number))
"""
    process = await launcher.start(launch(folder, python(code), workers=3))
    assert await ended(process) == Exit(0), (folder / "out").read_text()
    assert (folder / "out").read_text() == "3 workers\n"
    assert not (folder / "mine").exists() or (folder / "mine").read_text() == "0"


@alone
async def test_a_worker_that_fails_ends_all(launcher: Launcher, folder: Path) -> None:
    code = """
import os, sys, time
if os.environ.get("PET_STANDALONE") or os.environ["PET_NODE_RANK"] == "1":
    print("no such column", file=sys.stderr)
    sys.exit(5)
time.sleep(600)
"""
    began = time.monotonic()
    process = await launcher.start(launch(folder, python(code), workers=2))
    assert await ended(process) == Exit(5)
    assert "no such column" in (folder / "out").read_text()
    assert time.monotonic() - began < 80


@alone
async def test_workers_are_stopped_together(launcher: Launcher, folder: Path) -> None:
    process = await launcher.start(launch(folder, SLEEP, workers=2))
    await up(folder)
    assert not (await process.stop(5)).ok
    assert not process.alive()


async def test_memory_has_an_end(launcher: Launcher, folder: Path) -> None:
    code = "import time; kept = []\nfor _ in range(4000): kept.append(bytearray(b'x') * (1 << 20)); time.sleep(0.002)"
    process = await launcher.start(launch(folder, python(code)))
    exit = await ended(process)
    assert exit.oom
    assert not exit.ok


async def test_what_is_not_there_is_said(launcher: Launcher, folder: Path) -> None:
    """Where it is found out after the start, the exit is a shell's for it."""
    try:
        process = await launcher.start(launch(folder, ["/no/such/program"]))
    except LaunchError as error:
        assert "No such file" in str(error)
    else:
        assert await ended(process) == Exit(127)
        assert "No such file" in (folder / "out").read_text()


async def test_a_handle_ends_its_process_alone(launcher: Launcher, folder: Path) -> None:
    process = await launcher.start(launch(folder, SLEEP))
    await up(folder)
    assert not await launcher.end("")
    assert not await launcher.end(process.handle[:-3] + "000")
    assert process.alive()
    assert await launcher.end(process.handle)
    assert not (await ended(process)).ok
    assert not await launcher.end(process.handle)


async def test_a_start_that_is_broken_off_leaves_nothing(launcher: Launcher, folder: Path) -> None:
    starting = asyncio.create_task(launcher.start(launch(folder, python("import time; time.sleep(3); open('out', 'a').write('ran')"))))
    await asyncio.sleep(0.003)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert starting.cancelled()
    await asyncio.sleep(8)
    assert not (folder / "out").exists() or "ran" not in (folder / "out").read_text()


async def test_several_at_once(launcher: Launcher, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(4)]
    for each in folders:
        each.mkdir()
    processes = await asyncio.gather(*(launcher.start(launch(each, SLEEP, cpu_millis=50)) for each in folders))
    for each in folders:
        await up(each)
    assert len({process.handle for process in processes}) == 4
    exits = await asyncio.gather(*(process.stop(5) for process in processes))
    assert set(exits) == {Exit(None, signal.SIGTERM)}


async def test_a_group_that_is_over_can_be_begun_again(launcher: Launcher, folder: Path) -> None:
    for _ in range(2):
        process = await launcher.start(launch(folder, python("")))
        assert await ended(process) == Exit(0)
        await launcher.forget("line-1")
        await launcher.forget("never-begun")
