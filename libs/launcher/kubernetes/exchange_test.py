"""Couriers and the exchange against each other, without a cluster: a kill or a cut loses nothing, and nothing leaves its folder."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.launcher.kubernetes import courier
from libs.launcher.kubernetes.exchange import NAME, Exchange, Shipment
from libs.launcher.kubernetes.landing import Limits

COURIER = Path(courier.__file__)
LIMITS = Limits(file_bytes=8 << 20, total_bytes=16 << 20, files=20)


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (another process's files)
            await asyncio.sleep(0.02)


@dataclass
class Trip:
    """One launch: `home` is the owner's folder, `away` the pod's."""

    exchange: Exchange
    base: Path
    home: Path
    away: Path
    shipment: Shipment
    couriers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def task(self, **changed: Any) -> Path:
        task = {
            "address": f"127.0.0.1:{self.exchange.port}",
            "certificate": self.exchange.certificate,
            "id": self.shipment.id,
            "token": self.shipment.token,
            "roots": [str(self.away), str(self.base / "away-input")],
            "journals": ["stdout.log", "events.jsonl"],
            "skip": ["tmp"],
            "state": str(self.base / "state.json"),
            "control": str(self.base),
            "mirrored": True,
        } | changed
        path = self.base / f"task-{len(self.couriers)}.json"
        path.write_text(json.dumps(task))
        return path

    def courier(self, verb: str, pod: str = "pod-1", **changed: Any) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-I", "-S", COURIER, verb, self.task(**changed)]
        process = subprocess.Popen(words, env={"LEPTON_POD": pod}, stderr=subprocess.PIPE)
        self.couriers.append(process)
        return process

    async def fetch(self) -> None:
        assert await asyncio.to_thread(self.courier("fetch").wait, 30) == 0

    async def end(self, mirror: "subprocess.Popen[bytes]") -> None:
        """As the kubelet ends it once the program has ended."""
        await eventually((self.base / "alive").exists)
        mirror.terminate()
        assert await asyncio.to_thread(mirror.wait, 30) == 0
        assert self.shipment.done

    def add(self, name: str, text: str) -> None:
        path = self.away / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def at_home(self, name: str) -> str | None:
        path = self.home / name
        return path.read_text() if path.exists() else None


@pytest.fixture
async def trip(tmp_path: Path) -> AsyncIterator[Trip]:
    home, given = tmp_path / "home", tmp_path / "given"
    (home / "data").mkdir(parents=True)
    (home / "tmp").mkdir()
    given.mkdir()
    (home / "spec.json").write_text("{}")
    (home / "data" / "train.parquet").write_bytes(b"x" * 300_000)
    (given / "model.json").write_text("model")
    exchange = Exchange("127.0.0.1", 0, LIMITS)
    await exchange.start()
    shipment = exchange.offer("run-1", folder=home, inputs=[given], journals=["stdout.log", "events.jsonl"], changed=lambda: None)
    trip = Trip(exchange, tmp_path, home, tmp_path / "away", shipment)
    yield trip
    for process in trip.couriers:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()
    await exchange.stop()


async def test_the_pod_gets_its_files_and_sends_none_of_them_back(trip: Trip) -> None:
    await trip.fetch()
    assert (trip.away / "data" / "train.parquet").read_bytes() == b"x" * 300_000
    assert (trip.away / "tmp").is_dir()
    assert (trip.base / "away-input" / "model.json").read_text() == "model"
    before = (trip.home / "spec.json").stat().st_ino
    await trip.end(trip.courier("mirror"))
    assert (trip.home / "spec.json").stat().st_ino == before


async def test_what_the_program_writes_comes_home(trip: Trip) -> None:
    await trip.fetch()
    mirror = trip.courier("mirror")
    trip.add("stdout.log", "hello\n")
    await eventually(lambda: trip.at_home("stdout.log") == "hello\n")
    trip.add("stdout.log", "again\n")
    trip.add("checkpoints/epoch-1/state.json", "one")
    trip.add("tmp/scratch", "not this")
    trip.add("checkpoints/.epoch-2.part/state.json", "nor this")
    (trip.away / "away").symlink_to("/etc")
    await eventually(lambda: trip.at_home("checkpoints/epoch-1/state.json") == "one" and trip.at_home("stdout.log") == "hello\nagain\n")
    (trip.away / "checkpoints" / "epoch-1" / "state.json").unlink()
    (trip.away / "checkpoints" / ".epoch-2.part").rename(trip.away / "checkpoints" / "epoch-2")
    await eventually(lambda: trip.at_home("checkpoints/epoch-2/state.json") == "nor this")
    assert not (trip.home / "checkpoints" / "epoch-1").exists()
    trip.add("events.jsonl", "the last word")
    await trip.end(mirror)
    assert trip.at_home("events.jsonl") == "the last word"
    assert not (trip.home / "tmp" / "scratch").exists()
    assert not (trip.home / "away").exists()


async def test_an_event_is_never_there_before_what_it_names(trip: Trip) -> None:
    await trip.fetch()
    mirror = trip.courier("mirror")
    seen = 0
    for number in range(30):
        trip.add(f"part/{number % 15}", f"{number}" * 50_000)
        trip.add("events.jsonl", f"{number}\n")
        for line in (trip.at_home("events.jsonl") or "").splitlines()[seen:]:
            seen += 1
            assert f"{line}" * 50_000 in (trip.at_home(f"part/{int(line) % 15}") or "")
        await asyncio.sleep(0.03)
    await trip.end(mirror)
    assert trip.at_home("events.jsonl") == "".join(f"{number}\n" for number in range(30))


async def test_a_file_that_never_rests_does_not_keep_events_back(trip: Trip) -> None:
    await trip.fetch()
    trip.courier("mirror")
    trip.add("events.jsonl", "an event\n")
    async with asyncio.timeout(20):
        while trip.at_home("events.jsonl") != "an event\n":
            trip.add("restless", "x")
            await asyncio.sleep(0.02)


async def test_files_that_are_always_new_do_not_keep_events_back(trip: Trip) -> None:
    """As of a run with short epochs, each with a checkpoint in the place of the last."""
    await trip.fetch()
    trip.courier("mirror")
    trip.add("events.jsonl", "an event\n")
    number = 0
    async with asyncio.timeout(20):
        while trip.at_home("events.jsonl") != "an event\n":
            number += 1
            trip.add(f"made/{number}", "x")
            (trip.away / f"made/{number - 1}").unlink(missing_ok=True)
            await asyncio.sleep(0.02)


async def test_kill_9_of_the_courier_loses_and_doubles_nothing(trip: Trip) -> None:
    await trip.fetch()
    for number in range(6):
        mirror = trip.courier("mirror")
        for line in range(40):
            trip.add("stdout.log", f"{number} {line} {'x' * 2000}\n")
        trip.add(f"made/{number}", "y" * 400_000)
        await asyncio.sleep(0.15 + 0.07 * number)
        mirror.kill()
        await asyncio.to_thread(mirror.wait)
        (trip.base / "alive").unlink(missing_ok=True)
    await trip.end(trip.courier("mirror"))
    for name in ("stdout.log", *(f"made/{number}" for number in range(6))):
        assert trip.at_home(name) == (trip.away / name).read_text()
    assert not list((trip.home / ".incoming").iterdir())


class Cut:
    """A wire between courier and exchange that can be cut."""

    def __init__(self, port: int) -> None:
        self._port, self._writers, self.cuts = port, set[asyncio.StreamWriter](), 0
        self.server: asyncio.Server | None = None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, inner}
        await asyncio.gather(self._carry(reader, inner), self._carry(inner_reader, writer))
        self._writers -= {writer, inner}

    async def open(self) -> int:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
            self.cuts += 1


async def test_a_lost_connection_loses_and_doubles_nothing(trip: Trip) -> None:
    await trip.fetch()
    wire = Cut(trip.exchange.port)
    mirror = trip.courier("mirror", address=f"127.0.0.1:{await wire.open()}")
    for number in range(8):
        trip.add("stdout.log", f"{number} " + "x" * 300_000 + "\n")
        trip.add(f"made/{number}", "y" * 900_000)
        await asyncio.sleep(0.25)
        wire.cut()
    assert wire.cuts > 8
    await trip.end(mirror)
    assert wire.server
    wire.server.close()
    for name in ("stdout.log", *(f"made/{number}" for number in range(8))):
        assert trip.at_home(name) == (trip.away / name).read_text()


async def test_a_second_pod_of_one_launch_is_refused(trip: Trip) -> None:
    await trip.fetch()
    other = trip.courier("fetch", pod="pod-2")
    assert await asyncio.to_thread(other.wait, 30) != 0
    assert other.stderr
    assert b"another pod runs it" in other.stderr.read()


async def test_orders_reach_the_pod(trip: Trip) -> None:
    await trip.fetch()
    trip.courier("mirror")
    await eventually((trip.base / "alive").exists)
    trip.shipment.order_stop(1.5)
    await eventually((trip.base / "stop").exists, 2)
    assert float((trip.base / "stop").read_text()) == 1.5


async def test_an_owner_that_knows_the_launch_no_more_has_it_ended(trip: Trip) -> None:
    await trip.fetch()
    trip.courier("mirror")
    await eventually((trip.base / "alive").exists)
    await trip.exchange.withdraw(trip.shipment)
    await eventually((trip.base / "stop").exists)
    assert float((trip.base / "stop").read_text()) == 0


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [("large", LIMITS.file_bytes + 1, "at most 8388608"), ("many", 0, "more than 20 files"), ("much", LIMITS.file_bytes, "together")],
)
async def test_a_program_that_writes_too_much_is_told_and_ended(trip: Trip, name: str, size: int, words: str) -> None:
    await trip.fetch()
    mirror = trip.courier("mirror")
    for number in range(25 if name == "many" else 1 if name == "large" else 3):
        trip.add(f"{name}-{number}", "x" * size)
    await eventually(lambda: trip.shipment.refusal)
    assert words in trip.shipment.refusal
    await eventually((trip.base / "stop").exists)
    mirror.terminate()
    assert await asyncio.to_thread(mirror.wait, 5) == 1


async def say(trip: Trip, *messages: dict[str, Any] | bytes, **changed: Any) -> list[dict[str, Any]]:
    """What the exchange answers to a client that is no courier of ours."""
    context = ssl.create_default_context(cadata=trip.exchange.certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", trip.exchange.port, ssl=context, server_hostname=NAME)
    hello = {"id": "run-1", "token": trip.shipment.token, "instance": "pod-1", "purpose": "mirror"} | changed
    for message in (hello, *messages):
        writer.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
    answers = []
    async with asyncio.timeout(10):
        for _ in range(1 + sum(not isinstance(message, bytes) or b"\n" in message for message in messages)):
            line = await reader.readline()
            if not line:
                break
            answers.append(json.loads(line))
    writer.close()
    return answers


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "",
        ".",
        "a//b",
        "a/",
        ".incoming/x",
        ".hidden",
        "a\0b",
        "a\nb",
        "a/" * 20 + "b",
        "x" * 300,
        "ä" * 200,
        "\ud800",
    ],
)
@pytest.mark.parametrize("do", ["put", "append", "delete"])
async def test_no_path_leads_out_of_the_folder(trip: Trip, path: str, do: str) -> None:
    before = sorted(trip.base.rglob("*"))
    answers = await say(trip, {"do": do, "path": path, "offset": 0, "size": 0})
    assert answers[0] == {}
    assert "refused" in answers[1]
    assert sorted(trip.base.rglob("*")) == before


async def test_no_link_is_followed(trip: Trip) -> None:
    outside = trip.base / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (trip.home / "link").symlink_to(outside)
    (trip.home / "stdout.log").hardlink_to(outside / "kept")
    (trip.home / "events.jsonl").symlink_to(outside / "kept")
    for message in (
        {"do": "put", "path": "link/made", "size": 1},
        {"do": "delete", "path": "link/kept"},
        {"do": "append", "path": "stdout.log", "offset": 4, "size": 1},
        {"do": "append", "path": "events.jsonl", "offset": 4, "size": 1},
    ):
        await say(trip, message, b"x")
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert (outside / "kept").read_text() == "kept"


async def test_inputs_that_are_hard_links_are_replaced_and_not_written_to(trip: Trip) -> None:
    stored = trip.base / "object"
    stored.write_text("the store's")
    (trip.home / "data" / "lent").hardlink_to(stored)
    assert await say(trip, {"do": "put", "path": "data/lent", "size": 2}, b"me") == [{}, {}]
    assert (trip.at_home("data/lent"), stored.read_text()) == ("me", "the store's")


@pytest.mark.parametrize("changed", [{"token": "guess"}, {"token": ""}, {"id": "run-2"}, {"token": None}, {"id": ["run-1"]}])
async def test_without_the_launchs_own_token_nothing_is_heard(trip: Trip, changed: dict[str, Any]) -> None:
    assert await say(trip, **changed) == [{"refused": "its owner knows of no such launch"}]
    assert trip.shipment.heard is None


@pytest.mark.parametrize(
    "message",
    [
        b"{}\n",
        b"[]\n",
        b"no json\n",
        b"x" * 100_000 + b"\n",
        b'{"do": "put", "path": "x", "size": -1}\n',
        b'{"do": "put", "path": "x", "size": 1e300}\n',
        b'{"do": "put", "path": "x", "size": true}\n',
        b'{"do": "sing"}\n',
        b'{"do": ["put"]}\n',
    ],
)
async def test_nonsense_hurts_its_sender_alone(trip: Trip, message: bytes) -> None:
    answers = await say(trip, message)
    assert len(answers) == 1 or "refused" in answers[1]
    assert await say(trip, {"do": "put", "path": "fine", "size": 4}, b"fine") == [{}, {}]
    assert trip.at_home("fine") == "fine"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b'{"do": "append", "path": "x", "offset": 0, "size": 0}\n', "x is none of the files that are added to"),
        (b'{"do": "put", "path": "events.jsonl", "size": 0}\n', "events.jsonl is only added to"),
    ],
)
async def test_what_is_refused_ends_its_launch_which_hears_why_again(trip: Trip, message: bytes, words: str) -> None:
    assert (await say(trip, message))[1] == {"refused": words}
    assert trip.shipment.stop == 0
    assert await say(trip, {"do": "put", "path": "fine", "size": 4}, b"fine") == [{"refused": words}]
    assert trip.at_home("fine") is None


async def test_half_a_file_is_none(trip: Trip) -> None:
    context = ssl.create_default_context(cadata=trip.exchange.certificate)
    _, writer = await asyncio.open_connection("127.0.0.1", trip.exchange.port, ssl=context, server_hostname=NAME)
    hello = {"id": "run-1", "token": trip.shipment.token, "instance": "pod-1", "purpose": "mirror"}
    writer.write(json.dumps(hello).encode() + b'\n{"do": "put", "path": "torn", "size": 100}\nhalf')
    await eventually(lambda: list(trip.home.glob(".incoming/*")))
    writer.close()
    await eventually(lambda: not list(trip.home.glob(".incoming/*")))
    assert trip.at_home("torn") is None


def run(folder: Path, argv: list[str], **changed: Any) -> "subprocess.Popen[bytes]":
    program = {
        "argv": argv,
        "env": {"SAID": "hello"},
        "cwd": str(folder),
        "stdout": str(folder / "out"),
        "stderr": str(folder / "err"),
        "control": str(folder),
        "told": str(folder / "told"),
        "grace": 5,
        "once": False,
    } | changed
    (folder / "program.json").write_text(json.dumps(program))
    (folder / "alive").touch()
    environment = {"PATH": os.environ["PATH"], "SECRET": "the platform's"}
    return subprocess.Popen([sys.executable, "-I", "-S", COURIER, "run", folder / "program.json"], env=environment)


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "told").read_text()))


def test_the_program_is_run_as_asked(tmp_path: Path) -> None:
    process = run(tmp_path, ["sh", "-c", "echo $SAID$SECRET; pwd >&2; exit 7"])
    assert process.wait(20) == 7
    assert told(tmp_path) == {"code": 7, "signal": None, "oom": False}
    assert (tmp_path / "out").read_text() == "hello\n"
    assert (tmp_path / "err").read_text() == f"{tmp_path}\n"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert run(tmp_path, ["/no/such/program"]).wait(20) == 127
    assert told(tmp_path) == {"errno": 2}


@pytest.mark.parametrize(
    ("trap", "grace", "number"), [("", 5, signal.SIGTERM), ("trap '' TERM;", 0.3, signal.SIGKILL), ("", 0, signal.SIGKILL)]
)
def test_an_order_ends_the_program(tmp_path: Path, trap: str, grace: float, number: int) -> None:
    process = run(tmp_path, ["sh", "-c", f"{trap} echo up; while :; do sleep 0.1; done"])
    until = time.monotonic() + 10
    while not (tmp_path / "out").exists() or not (tmp_path / "out").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    (tmp_path / "stop").write_text(str(grace))
    assert process.wait(20) == 128 + number
    assert told(tmp_path) == {"code": None, "signal": number, "oom": False}


def test_a_program_whose_owner_is_silent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = COURIER.read_text()
    assert "ALONE_SECONDS = 60.0" in source
    quick = tmp_path / "courier.py"
    quick.write_text(source.replace("ALONE_SECONDS = 60.0", "ALONE_SECONDS = 0.5"))
    monkeypatch.setitem(globals(), "COURIER", quick)
    assert run(tmp_path, ["sleep", "60"]).wait(20) == 128 + signal.SIGKILL


async def test_a_pod_of_a_group_is_told_what_it_is_and_carries_the_rest_home_when_that_has_ended(trip: Trip) -> None:
    told = trip.base / "told"
    told.mkdir()
    files = {"roots": [str(trip.away), str(trip.base / "away-input")], "journals": ["events.jsonl"], "skip": [], "mirrored": True}
    trip.shipment.told = {"task.json": json.dumps(files).encode(), "program.json": b'{"once": true}'}
    trip.exchange.hand_over(trip.shipment, group="line-1", token="group's", instance="pod-2")
    way: dict[str, Any] = {"id": "line-1", "token": "group's", "told": str(told), "roots": [], "journals": [], "mirrored": False}
    refused = trip.courier("fetch", "pod-1", **way)
    assert await asyncio.to_thread(refused.wait, 30) == 1
    assert await asyncio.to_thread(trip.courier("fetch", "pod-2", **way).wait, 30) == 0
    assert (trip.away / "spec.json").read_text() == "{}"
    assert (told / "program.json").read_bytes() == b'{"once": true}'
    mirror = trip.courier("mirror", "pod-2", **way)
    await eventually((trip.base / "alive").exists)
    trip.add("events.jsonl", "ended\n")
    trip.shipment.order_last()
    assert await asyncio.to_thread(mirror.wait, 30) == 0
    assert (trip.shipment.done, trip.at_home("events.jsonl")) == (True, "ended\n")


def test_a_container_that_is_begun_anew_runs_nothing(tmp_path: Path) -> None:
    """Its first life has taken the order with it."""
    process = run(tmp_path, ["sh", "-c", "echo ran"], once=True)
    assert process.wait(20) == 0
    assert not (tmp_path / "program.json").exists()
    again = subprocess.Popen(process.args)
    with pytest.raises(subprocess.TimeoutExpired):
        again.wait(1.5)
    again.terminate()
    assert again.wait(20) == 0
    assert (tmp_path / "out").read_text() == "ran\n"
