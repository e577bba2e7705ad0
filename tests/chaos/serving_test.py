"""A steady stream of predictions while replicas die and hang, models change, scale goes up and down, and the services behind are away."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.endpoint import AT_ONCE, change, deploy, predicted, ready, replicas, settled
from tests.chaos.stream import BEGUN, Stream
from tests.platform import Platform, eventually, running

RATE = int(os.environ.get("LEPTON_TEST_RATE", "150"))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two models, and an endpoint of the first."""
    with running(Path(tmp_path_factory.mktemp("serving"))) as platform:
        deploy(platform)
        yield platform


def none_failed(stream: Stream, least: int) -> None:
    assert not stream.failures, (len(stream.failures), stream.failures[:3], stream.answers)
    assert stream.answers[200] >= least, stream.answers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_are_killed_one_after_the_other(platform: Platform) -> None:
    with Stream(platform, RATE).flowing() as stream:
        time.sleep(1)
        for _ in range(4):
            random.choice(replicas(platform)).kill()
            assert eventually(lambda: ready(platform) == 2, timeout=60)
            time.sleep(2)
    begun = [failure for failure in stream.failures if BEGUN in failure]
    assert not set(stream.failures) - set(begun), stream.failures[:3]
    assert len(begun) <= 4
    assert stream.answers[200] > 5 * RATE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_that_hangs_is_replaced_and_its_requests_are_answered_by_others(platform: Platform) -> None:
    with Stream(platform, RATE).flowing() as stream:
        time.sleep(1)
        hung = random.choice(replicas(platform))
        hung.send_signal(signal.SIGSTOP)
        assert eventually(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE, timeout=60)
        assert eventually(lambda: ready(platform) == 2, timeout=60)
    none_failed(stream, 2 * RATE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_models_and_more_and_fewer_replicas(platform: Platform) -> None:
    with Stream(platform, RATE).flowing() as stream:
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
    with Stream(platform, RATE).flowing() as stream:
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
