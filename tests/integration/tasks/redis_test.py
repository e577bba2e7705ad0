"""Task queues on a real Redis: passwords, TLS, messages that come twice, killed workers, a broker that goes away and comes back."""

import asyncio
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from libs.tasks import TaskQueue, Worker
from libs.tasks.queue import MOST_UNSENT
from tests.integration.rpc.scene import Authority
from tests.integration.tasks.desk import Desk, register
from tests.redis import PASSWORD, Redis, server


@asynccontextmanager
async def working(queue: TaskQueue, **options: Any) -> AsyncIterator[None]:
    worker = Worker([queue], **options)
    await worker.start()
    try:
        yield
    finally:
        await worker.stop()
        await queue.stop()


async def until(check: Callable[[], object], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 (any condition)
            await asyncio.sleep(0.05)


def greeter(queue: TaskQueue) -> list[str]:
    """Whom the worker greeted."""
    greeted: list[str] = []

    async def greet(name: str) -> None:
        greeted.append(name)

    queue.register("greet", greet)
    return greeted


async def test_a_redis_with_a_password(redis: Redis) -> None:
    queue = TaskQueue("tests", redis.url)
    greeted = greeter(queue)
    async with working(queue):
        queue.enqueue("greet", {"name": "ada"})
        await until(lambda: greeted == ["ada"], 15)
    # Acknowledged: nothing is left to come again.
    assert redis.ask("EXISTS", "unacked", "lepton.tests") == "0"


async def test_the_password_is_in_no_log(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cret/of us@x:y"
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logs:
        for url in (redis.url_with(secret), f"redis://:{quote(secret, safe='')}@nowhere.test:1/0", "redis://:s3cret@127.0.0.1:1/no-number"):
            known = len(logs)
            queue = TaskQueue("tests", url)
            queue.enqueue("greet", {"name": "ada"})
            await until(lambda known=known: len(logs) > known, 20)
            assert "s3cret" not in repr(queue)
            await queue.stop()
        queue = TaskQueue("tests", redis.url_with(secret))
        async with working(queue):
            await until(lambda: logs[-1]["event"] == "task_broker_away", 15)
    assert [entry["event"] for entry in logs] == 3 * ["task_enqueue_failed"] + ["task_broker_away"]
    assert "s3cret" not in caplog.text + repr(logs)


def test_a_url_that_cannot_be_read_is_not_shown() -> None:
    for url in ("redis://:s3cret/of us@x:y@127.0.0.1:6379/0", "redis://:pass@127.0.0.1:s3cret/0"):
        with pytest.raises(ValueError, match="have to be quoted") as refused:
            TaskQueue("tests", url)
        assert "s3cret" not in str(refused.value)


async def test_a_worker_waits_for_the_right_password(redis: Redis) -> None:
    queue = TaskQueue("tests", redis.url_with("another one"))
    greeted = greeter(queue)
    async with working(queue):
        await asyncio.sleep(2)
        redis.ask("CONFIG", "SET", "requirepass", "another one")
        sender = TaskQueue("tests", redis.url_with("another one"))
        sender.enqueue("greet", {"name": "ada"})
        await until(lambda: greeted == ["ada"], 30)
        await sender.stop()


async def test_a_redis_with_tls(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # noqa: ASYNC240
    tls = Authority(tmp_path).issue("redis")
    for name in ("ca", "cert", "key"):
        shutil.copy(getattr(tls, f"{name}_file"), tmp_path / f"{name}.pem")
        (tmp_path / f"{name}.pem").chmod(0o644)
    files = [f"--tls-{name}-file" for name in ("ca-cert", "cert", "key")]
    options = [word for option, name in zip(files, ("ca", "cert", "key"), strict=True) for word in (option, f"/files/{name}.pem")]
    words = ("--tls", "--insecure")
    with server("--port", "0", "--tls-port", "6379", "--tls-auth-clients", "no", *options, files=tmp_path, words=words) as redis:
        good = f"{redis.url_with(PASSWORD, 'rediss')}?ssl_ca_certs={tmp_path}/ca.pem"
        queue = TaskQueue("tests", good)
        greeted = greeter(queue)
        async with working(queue):
            queue.enqueue("greet", {"name": "ada"})
            await until(lambda: greeted == ["ada"], 15)
        # Who it is, is checked.
        Authority(tmp_path, "other")
        with structlog.testing.capture_logs() as logs:
            # Of another database: kombu keeps connections of one address, whatever they were to trust.
            stranger = TaskQueue("tests", good.replace("ca.pem", "other.pem").replace("/0?", "/1?"))
            stranger.enqueue("greet", {"name": "eve"})
            await until(lambda: logs, 20)
            await stranger.stop()
        assert "CERTIFICATE_VERIFY_FAILED" in logs[0]["reason"]


async def test_a_message_that_comes_again_while_its_task_runs_starts_nothing(redis: Redis, tmp_path: Path, capfd: Any) -> None:
    desk = Desk(tmp_path / "desk.db")
    desk.put("a")
    queue = TaskQueue("tests", redis.url, visibility_seconds=1)
    register(queue, desk, seconds=6, lease=2)
    async with working(queue):
        queue.enqueue("work", {"name": "a"})
        await until(lambda: desk.effects(), 30)
    told = capfd.readouterr().out
    assert told.count("claimed a") == 1
    # It did come again.
    assert told.count("taken a") >= 1
    assert desk.effects() == [("a", 1)]


async def test_work_of_a_killed_worker_is_done_once_by_another(redis: Redis, tmp_path: Path) -> None:
    file = tmp_path / "desk.db"
    desk = Desk(file)
    names = [f"job-{number}" for number in range(4)]
    for name in names:
        desk.put(name)
    queue = TaskQueue("tests", redis.url)
    first = _start(redis.url, file, seconds=60)
    second = None
    try:
        for name in names:
            queue.enqueue("work", {"name": name})
        assert first.stdout
        claimed = {await asyncio.to_thread(first.stdout.readline) for _ in names}
        assert claimed == {f"claimed {name}\n" for name in names}
        first.kill()
        await asyncio.to_thread(first.wait)
        second = _start(redis.url, file, seconds=0.2)
        async with asyncio.timeout(60):
            while len(desk.effects()) < len(names):
                # What a reconciler does.
                for name in desk.waiting():
                    queue.enqueue("work", {"name": name})
                await asyncio.sleep(0.3)
        await asyncio.sleep(1)
        assert desk.effects() == [(name, 2) for name in names]
    finally:
        await queue.stop()
        for process in (first, second):
            if process:
                process.kill()
                process.wait()


def _start(url: str, file: Path, *, seconds: float) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.integration.tasks.desk", url, str(file), str(seconds), "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_redis_that_goes_away_and_comes_back(redis: Redis, kill: bool) -> None:
    queue, sender = TaskQueue("tests", redis.url), TaskQueue("tests", redis.url)
    greeted = greeter(queue)
    async with working(queue):
        sender.enqueue("greet", {"name": "before"})
        await until(lambda: greeted == ["before"], 15)
        for round in range(2):
            await asyncio.to_thread(redis.stop, kill=kill)
            with structlog.testing.capture_logs() as logs:
                began = time.monotonic()
                for number in range(3 * MOST_UNSENT):
                    sender.enqueue("greet", {"name": f"{round}-{number}"})
                assert time.monotonic() - began < 3
                await until(lambda logs=logs: logs, 20)
                await asyncio.sleep(2)
            # What does not fit is dropped, and that is said once.
            assert sorted(entry["event"] for entry in logs) in (["task_enqueue_failed"], ["task_broker_away", "task_enqueue_failed"])
            await asyncio.to_thread(redis.start)
            # The worker is back by itself, and so is the sender with what it kept.
            await until(lambda round=round: any(re.match(f"{round}-", name) for name in greeted), 60)
            sender.enqueue("greet", {"name": f"after {round}"})
            await until(lambda round=round: f"after {round}" in greeted, 30)
        assert len(greeted) <= 2 * (MOST_UNSENT + 2) + 3
    await sender.stop()


async def test_a_stop_does_not_wait_for_a_redis_that_is_away(redis: Redis) -> None:
    queue = TaskQueue("tests", redis.url)
    greeter(queue)
    worker = Worker([queue])
    await worker.start()
    queue.enqueue("greet", {"name": "ada"})
    await asyncio.sleep(1)
    await asyncio.to_thread(redis.stop, kill=True)
    for _ in range(100):
        queue.enqueue("greet", {"name": "ada"})
    began = time.monotonic()
    await worker.stop()
    await queue.stop()
    assert time.monotonic() - began < 5
