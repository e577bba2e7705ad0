"""The launcher on a cluster, where things go wrong: owners that die, pods that are taken away, and pods that the cluster will not run."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.launcher import Exit, Launch, Launcher, LaunchError, LauncherSettings, open_launcher
from libs.lifecycle import Lifecycle
from tests.pods import folder, kubectl, launcher, launcher_settings

__all__ = ["folder", "launcher"]

SLEEP = ["python", "-c", "import time; print('up', flush=True); time.sleep(600)"]
GROUPS = ["", "line-1"]
OWNER = """
import asyncio, pathlib, sys
from libs.launcher import Launch, LauncherSettings, open_launcher
from libs.lifecycle import Lifecycle
async def main():
    folder = pathlib.Path(sys.argv[2])
    launcher, parts = open_launcher(LauncherSettings.model_validate_json(sys.argv[1]))
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    out = folder / "out"
    argv = ["python", "-c", "import time; time.sleep(600)"]
    launch = Launch("orphan", argv, cwd=folder, stdout=out, stderr=out, group=sys.argv[3])
    process = await launcher.start(launch)
    (folder / "handle").write_text(process.handle)
    await process.wait()
asyncio.run(main())
"""


@pytest.fixture
def settings() -> LauncherSettings:
    return launcher_settings()


def launch(folder: Path, argv: list[str] = SLEEP, **changed: Any) -> Launch:
    out = folder / "out"
    return Launch("test", argv, **({"cwd": folder, "stdout": out, "stderr": out} | changed))


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await asyncio.to_thread(condition)):  # noqa: ASYNC110 (the cluster's doing)
            await asyncio.sleep(0.2)
        return found


async def up(folder: Path) -> None:
    await until(lambda: (folder / "out").exists() and "up" in (folder / "out").read_text())


def pods(settings: LauncherSettings) -> list[dict[str, Any]]:
    found = json.loads(kubectl("get", "pods", "--selector", f"lepton.dev/owner={settings.owner}", "--output", "json"))
    return list(found["items"])


def left(settings: LauncherSettings) -> str:
    return kubectl("get", "jobs,deployments,pods,secrets", "--selector", f"lepton.dev/owner={settings.owner}", "--output", "name")


def start_and_kill_an_owner(settings: LauncherSettings, folder: Path, group: str = "") -> None:
    owner, give_up = subprocess.Popen([sys.executable, "-c", OWNER, settings.model_dump_json(), folder, group]), time.monotonic() + 60
    while not (folder / "handle").exists() and time.monotonic() < give_up:
        time.sleep(0.1)
    owner.kill()
    owner.wait()
    assert (folder / "handle").exists()


async def test_nothing_is_left_of_what_has_ended(launcher: Launcher, settings: LauncherSettings, folder: Path) -> None:
    process = await launcher.start(launch(folder, ["true"]))
    assert await process.wait() == Exit(0)
    await until(lambda: not left(settings))


async def test_a_group_is_one_deployment_from_whose_pods_one_is_taken_alone(
    launcher: Launcher, settings: LauncherSettings, tmp_path: Path
) -> None:
    """None of the others, though some are not ready yet: the cluster itself would take those first."""
    folders = [tmp_path / str(number) for number in range(4)]
    for each in folders:
        each.mkdir()
    first = await asyncio.gather(*(launcher.start(launch(each, group="line-1", cpu_millis=50)) for each in folders[:3]))
    last, _ = await asyncio.gather(launcher.start(launch(folders[3], group="line-1", cpu_millis=50)), first[1].stop(5))
    (name,) = kubectl("get", "deployments", "--selector", f"lepton.dev/owner={settings.owner}", "--output", "name").split()

    def shown() -> tuple[str, set[str]]:
        wanted = kubectl("get", name, "--output", "jsonpath={.spec.replicas}")
        return wanted, {pod["metadata"]["uid"] for pod in pods(settings) if "deletionTimestamp" not in pod["metadata"]}

    handles = {process.handle.rpartition("/")[2] for process in (first[0], first[2], last)}
    await until(lambda: shown() == ("3", handles))
    assert all(process.alive() for process in (first[0], first[2], last))
    await asyncio.gather(*(process.stop(0) for process in (first[0], first[2], last)))
    await until(lambda: shown() == ("0", set()))
    await launcher.forget("line-1")
    await until(lambda: not left(settings))


async def test_a_pod_may_do_nothing_but_run_its_program(launcher: Launcher, settings: LauncherSettings, folder: Path) -> None:
    labels = {"role": "run", "workspace": "acme", "job": "a name that is none for a label"}
    process = await launcher.start(launch(folder, env={"TOKEN": "hunter2"}, labels=labels))
    (pod,) = await asyncio.to_thread(pods, settings)
    assert process.host == pod["status"]["podIP"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"]["lepton.dev/role"] == "run"
    assert pod["metadata"]["annotations"]["lepton.dev/job"] == labels["job"]
    assert "hunter2" not in json.dumps(pod)
    name, inside = pod["metadata"]["name"], "from pathlib import Path; import os, sys\n"
    asked = inside + "print(os.getuid(), [p for p in ('/lepton/task', '/var/run/secrets') if Path(p).exists()]); Path('/x').write_text('x')"
    done = await asyncio.to_thread(
        subprocess.run,
        ["kubectl", "--namespace", settings.namespace, "exec", name, "--container", "program", "--", "python", "-c", asked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "10001 []\n"
    assert "Read-only file system" in done.stderr
    await process.stop(1)


@pytest.mark.parametrize("group", GROUPS)
async def test_a_killed_owners_pods_are_ended_by_its_successor(settings: LauncherSettings, folder: Path, group: str) -> None:
    await asyncio.to_thread(start_and_kill_an_owner, settings, folder, group)
    assert len(await asyncio.to_thread(pods, settings)) == 1
    launcher, parts = open_launcher(settings)
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    try:
        await until(lambda: not left(settings))
        assert not await launcher.end((folder / "handle").read_text())
    finally:
        await lifecycle.stop()


@pytest.mark.slow
async def test_a_pod_without_an_owner_ends_by_itself(settings: LauncherSettings, folder: Path) -> None:
    await asyncio.to_thread(start_and_kill_an_owner, settings, folder)
    await until(lambda: [pod for pod in pods(settings) if pod["status"]["phase"] == "Failed"], 150)
    kubectl("delete", "job", (folder / "handle").read_text().split("/")[2])


async def test_what_an_owner_left_half_made_is_removed(settings: LauncherSettings, launcher: Launcher, folder: Path) -> None:
    """Suspended, without its Secret: as a crash between the two leaves it."""
    process = await launcher.start(launch(folder))
    name = process.handle.split("/")[2]
    job = json.loads(await asyncio.to_thread(kubectl, "get", "job", name, "--output", "json"))
    for key in ("uid", "resourceVersion", "creationTimestamp", "generation"):
        job["metadata"].pop(key)
    for key in ("controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name"):
        job["spec"]["template"]["metadata"]["labels"].pop(key, None)
    job["spec"].pop("selector")
    job["metadata"]["name"], job["spec"]["suspend"] = f"{name}-half", True
    await asyncio.to_thread(subprocess.run, ["kubectl", "create", "--filename", "-"], input=json.dumps(job), text=True, check=True)
    await launcher.sweep()  # type: ignore[attr-defined]
    await until(lambda: f"{name}-half" not in left(settings))
    assert process.alive()
    await process.stop(1)


@pytest.mark.parametrize("group", GROUPS)
async def test_a_pod_that_is_taken_away_is_told_in_words(launcher: Launcher, settings: LauncherSettings, folder: Path, group: str) -> None:
    process = await launcher.start(launch(folder, group=group))
    await up(folder)
    (pod,) = await asyncio.to_thread(pods, settings)
    await asyncio.to_thread(kubectl, "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    async with asyncio.timeout(30):
        assert (await process.wait()).signal in (signal.SIGKILL, signal.SIGTERM)
    assert "its pod was deleted" in (folder / "out").read_text()


@pytest.mark.parametrize("group", GROUPS)
async def test_a_drained_pod_sends_its_last_words(launcher: Launcher, settings: LauncherSettings, folder: Path, group: str) -> None:
    code = "import signal, sys, time\n"
    code += "signal.signal(15, lambda *_: (print('goodbye', flush=True), sys.exit(4)))\nprint('up', flush=True)\ntime.sleep(600)"
    process = await launcher.start(launch(folder, ["python", "-c", code], group=group))
    await up(folder)
    (pod,) = await asyncio.to_thread(pods, settings)
    await asyncio.to_thread(kubectl, "delete", "pod", pod["metadata"]["name"], "--wait=false")
    async with asyncio.timeout(60):
        assert await process.wait() == Exit(4)
    assert "goodbye" in (folder / "out").read_text()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("changed", "wanted", "words"),
    [
        ({"image": "lepton/no-such-image:1", "image_pull_policy": "Never"}, {}, "the image lepton/no-such-image:1 cannot be pulled"),
        ({"image": "localhost:1/nothing:1"}, {}, "the image localhost:1/nothing:1 cannot be pulled"),
        ({"place_seconds": 3.0}, {"node": "no-such-node"}, "the cluster has no place for it: 0/"),
        ({"place_seconds": 3.0}, {"memory_bytes": 1 << 50}, "Insufficient memory"),
        ({"place_seconds": 3.0}, {"devices": 64}, "Insufficient nvidia.com/gpu"),
        ({"priority_class": "no-such-class"}, {}, "no PriorityClass with name no-such-class"),
        ({"python": "/no/such/python"}, {}, "no such file or directory"),
    ],
)
async def test_what_the_cluster_will_not_run_is_said_in_words(
    settings: LauncherSettings, folder: Path, changed: dict[str, Any], wanted: dict[str, Any], words: str, group: str
) -> None:
    launcher, parts = open_launcher(settings.model_copy(update=changed))
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    try:
        began = time.monotonic()
        with pytest.raises(LaunchError) as error:
            await launcher.start(launch(folder, group=group, **wanted))
        assert words in str(error.value)
        assert time.monotonic() - began < 90
        await launcher.forget(group)
        await until(lambda: not left(settings))
    finally:
        await lifecycle.stop()


async def test_a_program_that_writes_too_much_is_ended_in_words(settings: LauncherSettings, folder: Path) -> None:
    launcher, parts = open_launcher(settings.model_copy(update={"file_bytes": 1 << 20}))
    lifecycle = Lifecycle(parts)
    await lifecycle.start()
    try:
        code = "import time; open('large', 'wb').write(b'x' * (2 << 20)); time.sleep(600)"
        process = await launcher.start(launch(folder, ["python", "-c", code]))
        async with asyncio.timeout(60):
            assert await process.wait() == Exit(1)
        assert (folder / "out").read_text().endswith("its file large has 2097152 bytes; at most 1048576 are kept\n")
    finally:
        await lifecycle.stop()
