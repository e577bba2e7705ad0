"""A steady stream of predictions while replicas die and hang, models change, scale goes up and down, and the services behind are away."""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.chaos.flow import job, upload
from tests.platform import Platform, eventually, running

RATE = int(os.environ.get("LEPTON_TEST_RATE", "150"))
RECORD = b'{"instances":[{"x":1.5}]}'
AT_ONCE = {"canary_percents": [100], "step_seconds": 0, "prove_seconds": 0}


class Stream:
    """`RATE` requests a second, each on its own time, none sent twice."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="stream", daemon=True)
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.seconds: list[float] = []

    @contextlib.contextmanager
    def flowing(self) -> Iterator["Stream"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(90)
            took = sorted(self.seconds)
            median, late = (took[len(took) * part // 100] * 1e3 for part in (50, 99))
            print(f"{dict(self.answers)}: median {median:.1f} ms, 99 % {late:.0f} ms, most {took[-1]:.2f} s")

    async def _run(self) -> None:
        headers = {"authorization": f"Bearer {self._platform.key}", "content-type": "application/json"}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        async with aiohttp.ClientSession(self._platform.url, headers=headers, connector=connector) as session:
            tasks: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not self._over.is_set():
                task = asyncio.create_task(self._ask(session))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        try:
            async with session.post("/v1/endpoints/line/predict", data=RECORD) as response:
                body = await response.text()
        except aiohttp.ClientError as error:
            self.failures.append(repr(error))
            return
        self.answers[response.status] += 1
        self.seconds.append(time.monotonic() - began)
        if response.status != 200:
            self.failures.append(f"{response.status} {body[:300]}")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two models, and an endpoint of the first."""
    with running(Path(tmp_path_factory.mktemp("serving"))) as platform:
        upload(platform, "line")
        with platform.http() as http:
            for number in (1, 2):
                made = http.post("/v1/training-jobs", json={**job(number, epochs=2), "output_model": "line"})
                assert made.status_code == 202, made.text
                path = f"/v1/training-jobs/{made.json()['id']}"
                assert eventually(lambda path=path: http.get(path).json()["state"] == "succeeded", timeout=120)
            http.post("/v1/endpoints", json={"name": "line", "model": "line@1", "replicas": 2}).raise_for_status()
        assert eventually(lambda: ready(platform) == 2, timeout=60)
        yield platform


def ready(platform: Platform) -> int:
    with platform.http() as http:
        return int(http.get("/v1/endpoints/line").json()["ready_replicas"])


def change(platform: Platform, **wish: Any) -> None:
    with platform.http() as http:
        answer = http.patch("/v1/endpoints/line", json=wish)
        assert answer.status_code == 200, answer.text


def settled(platform: Platform, replicas: int, model: str) -> bool:
    with platform.http() as http:
        found = http.get("/v1/endpoints/line").json()
        return (found["ready_replicas"], found["model"], found["state"]) == (replicas, model, "ready")


def replicas(platform: Platform) -> list[psutil.Process]:
    return platform.find("services.deployment.replica")


def none_failed(stream: Stream, least: int) -> None:
    assert not stream.failures, (len(stream.failures), stream.failures[:3], stream.answers)
    assert stream.answers[200] >= least, stream.answers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_are_killed_one_after_the_other(platform: Platform) -> None:
    with Stream(platform).flowing() as stream:
        time.sleep(1)
        for _ in range(4):
            random.choice(replicas(platform)).kill()
            assert eventually(lambda: ready(platform) == 2, timeout=60)
            time.sleep(2)
    begun = [failure for failure in stream.failures if "broke off in the middle" in failure]
    assert not set(stream.failures) - set(begun), stream.failures[:3]
    assert len(begun) <= 4
    assert stream.answers[200] > 5 * RATE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_that_hangs_is_replaced_and_its_requests_are_answered_by_others(platform: Platform) -> None:
    with Stream(platform).flowing() as stream:
        time.sleep(1)
        hung = random.choice(replicas(platform))
        hung.send_signal(signal.SIGSTOP)
        assert eventually(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE, timeout=60)
        assert eventually(lambda: ready(platform) == 2, timeout=60)
    none_failed(stream, 2 * RATE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_models_and_more_and_fewer_replicas(platform: Platform) -> None:
    with Stream(platform).flowing() as stream:
        for number in range(4):
            model = f"line@{1 + (number + 1) % 2}"
            change(platform, model=model, rollout=AT_ONCE)
            assert eventually(lambda model=model: settled(platform, 2, model), timeout=120)
        for count in (1, 4, 1, 2):
            change(platform, replicas=count)
            assert eventually(lambda count=count: settled(platform, count, "line@1"), timeout=120)
    none_failed(stream, 2 * RATE)  # a quick machine takes all steps in a few seconds


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_service_stands_still_for_half_a_minute(platform: Platform) -> None:
    """All of them share the stopped process, but for the gateway and the replicas: keys and replicas that are known go on."""
    owner = psutil.Process(platform.pid())
    time.sleep(3)
    billed = predicted(platform)
    with Stream(platform).flowing() as stream:
        time.sleep(2)
        before = stream.answers[200]
        owner.send_signal(signal.SIGSTOP)
        try:
            time.sleep(30)
            meanwhile = stream.answers[200] - before
        finally:
            owner.send_signal(signal.SIGCONT)
        time.sleep(3)
    none_failed(stream, 15 * RATE)
    assert meanwhile > 12 * RATE
    rows = stream.answers[200]
    assert eventually(lambda: predicted(platform) - billed == rows, timeout=30), (predicted(platform) - billed, rows)


def predicted(platform: Platform) -> float:
    with platform.http() as http:
        return float(sum(line["quantity"] for line in http.get("/v1/usage").json()["lines"] if line["metric"] == "predictions"))
