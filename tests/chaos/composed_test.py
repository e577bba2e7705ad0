"""The composed platform while what it stands on, and its own services, are stopped and killed: nothing is lost, nothing happens twice.

A short round by default; LEPTON_CHAOS=full is the one whose figures are in docs/figures.md.
"""

import itertools
import os
import random
import subprocess
import time
from dataclasses import fields

import httpx
import pytest

from tests.balancer import Balanced, first_of_two_free_ports
from tests.chaos.flow import Flow, asking
from tests.composed import BACKENDS, SERVICES, Composed
from tests.platform import eventually

FULL = os.environ.get("LEPTON_CHAOS") == "full"
ITEMS = 50 if FULL else 6
OUTAGE_SECONDS = 30.0 if FULL else 8.0
KILLS = 100 if FULL else len(SERVICES)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True, timeout=120)


def answers(platform: Composed) -> bool:
    try:
        return httpx.get(f"{platform.url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_is_stopped_and_one_that_is_killed(composed_platform: Composed, backend: str) -> None:
    flow = Flow(composed_platform.workspace(f"outage-{backend}-{time.time():.0f}"), ITEMS).start()
    (container,) = composed_platform.containers(backend)
    time.sleep(2)
    docker("stop", "--time", "10", container)
    time.sleep(OUTAGE_SECONDS)
    docker("start", container)
    time.sleep(5)
    docker("kill", container)
    time.sleep(1)
    docker("start", container)
    back = time.monotonic()
    assert eventually(lambda: answers(composed_platform), timeout=60), composed_platform.log()
    ready = time.monotonic() - back
    flow.check(timeout=60 + 20 * ITEMS)
    print(
        f"{backend}: ready {ready:.1f} s after its second start, all {ITEMS} datasets and jobs done after {time.monotonic() - back:.0f} s"
    )


def test_every_service_killed_in_turn_at_random_moments(composed_platform: Composed) -> None:
    chance = random.Random(3)
    flow = Flow(composed_platform.workspace(f"kills-{time.time():.0f}"), ITEMS, pause=KILLS * 4 / ITEMS).start()
    for service in itertools.islice(itertools.cycle(SERVICES), KILLS):
        time.sleep(chance.uniform(0.5, 4))
        for container in composed_platform.containers(service):
            # `docker kill` counts as a stop that somebody wants: the restart policy does not bring it back, so we do.
            docker("kill", container)
            docker("start", container)
    assert eventually(lambda: answers(composed_platform), timeout=90), composed_platform.log()
    flow.check(timeout=60 + 20 * ITEMS)


def test_two_of_every_service_and_a_rolling_restart(composed_platform: Composed) -> None:
    """Of the gateway too, with a balancer before it; they restart one by one while a client asks all the time."""
    port, calls = first_of_two_free_ports(), first_of_two_free_ports()
    listen = {"LEPTON_LISTEN": f"127.0.0.1:{port}-{port + 1}", "LEPTON_GRPC_LISTEN": f"127.0.0.1:{calls}-{calls + 1}"}
    overrides = {**composed_platform.overrides, **listen}
    same = {field.name: getattr(composed_platform, field.name) for field in fields(Composed)}
    platform = Balanced(**{**same, "port": port, "overrides": overrides})
    platform.up(*(word for service in SERVICES for word in ("--scale", f"{service}=2")))
    try:
        tenant = platform.workspace(f"rolling-{time.time():.0f}")
        flow = Flow(tenant, ITEMS).start()
        with tenant.http() as http:
            assert eventually(lambda: http.get("/v1/models/model-0/versions/1").status_code == 200, timeout=120)
            http.post("/v1/endpoints", json={"name": "line", "model": "model-0@1", "replicas": 2}).raise_for_status()
            assert eventually(lambda: http.get("/v1/endpoints/line").json()["state"] == "ready", timeout=90)
        with asking(tenant) as (failed, seconds):
            for service in SERVICES:
                for container in platform.containers(service):
                    docker("stop", "--time", "60", container)
                    docker("start", container)
                    assert eventually(lambda c=container: _healthy(c), timeout=120), service
        assert not failed, (len(failed), len(seconds), failed[:5])
        assert len(seconds) > 50
        flow.check(timeout=60 + 20 * ITEMS)
        print(f"{len(seconds)} requests, none failed; slowest {max(seconds):.2f} s")
    finally:
        composed_platform.up(*(word for service in SERVICES for word in ("--scale", f"{service}=1")))


def _healthy(container: str) -> bool:
    words = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container]
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout.strip() == "healthy"
