"""A steady stream of predictions through each fault in turn, on a platform whose services are processes of their own.

LEPTON_REQUESTS=100000 takes as many, at LEPTON_TEST_RATE a second, with kills every five seconds until they are sent, and whole outages.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.apart import Apart, running_apart
from tests.chaos.endpoint import AT_ONCE, change, deploy, predicted, ready, replicas, settled
from tests.chaos.stream import BEGUN, Stream
from tests.platform import eventually

REQUESTS = int(os.environ.get("LEPTON_REQUESTS", "3000"))
RATE = float(os.environ.get("LEPTON_TEST_RATE", "80"))
WHOLE = REQUESTS >= 100_000
UPDATES, AWAY_SECONDS, KILL_SECONDS = (5, 60.0, 5.0) if WHOLE else (1, 6.0, 3.0)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Apart]:
    if not WHOLE:
        monkeypatch.setenv("LEPTON_DEPLOYMENT_PROBE_SECONDS", "1")
    with running_apart(tmp_path) as platform:
        deploy(platform)
        time.sleep(3)
        yield platform


def kill_one(platform: Apart) -> None:
    found = eventually(lambda: replicas(platform), timeout=30)
    assert found, platform.log()
    random.choice(found).kill()
    time.sleep(KILL_SECONDS)


def settles(platform: Apart, count: int, model: str) -> None:
    assert eventually(lambda: settled(platform, count, model), timeout=120), platform.log()


@pytest.mark.slow
@pytest.mark.timeout(300 + REQUESTS / RATE)
def test_no_request_fails_whatever_does(platform: Apart) -> None:
    billed, kills = predicted(platform), 0
    with Stream(platform, RATE).flowing() as stream:
        time.sleep(1)
        for number in range(UPDATES):
            with stream.phase(f"update {number + 1}"):
                model = f"line@{1 + (number + 1) % 2}"
                change(platform, model=model, rollout=AT_ONCE)
                settles(platform, 2, model)
        for count in (1, 4, 1, 2):
            with stream.phase(f"scaled to {count}"):
                change(platform, replicas=count)
                settles(platform, count, model)
        with stream.phase("a replica hangs"):
            hung = random.choice(replicas(platform))
            hung.send_signal(signal.SIGSTOP)
            assert eventually(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE, timeout=60)
            assert eventually(lambda: ready(platform) == 2, timeout=60)
        for service in ("deployment", "accounts"):
            with stream.phase(f"{service} is away for {AWAY_SECONDS:g} s") as away:
                platform.take(service)
                time.sleep(AWAY_SECONDS)
                platform.bring(service)
            assert eventually(platform.answers, timeout=60), platform.log()
            assert away.answers[200] > 0.5 * AWAY_SECONDS * RATE
            settles(platform, 2, model)
        with stream.phase("replicas are killed"):
            while kills < 2 or stream.sent < REQUESTS:
                kill_one(platform)
                kills += 1
    begun = [failure for failure in stream.failures if BEGUN in failure]
    print(f"{len(begun)} of {stream.sent} had begun to be answered by one of {kills} killed replicas")
    assert not set(stream.failures) - set(begun), [failure for failure in stream.failures if failure not in begun][:3]
    assert len(begun) <= kills
    assert stream.sent >= REQUESTS
    rows = stream.answers[200]
    assert eventually(lambda: predicted(platform) - billed == rows, timeout=60), (predicted(platform) - billed, rows)
