"""Five times what a replica can answer: it goes on answering as much, and says no to the rest at once.

LEPTON_STRICT=1 asks for the figures of a quiet machine.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libs.modelkit import custom, guest
from libs.modelkit import package as packages
from tests.load import Load, goodput, percentile
from tests.platform import eventually, running

STRICT = bool(os.environ.get("LEPTON_STRICT"))
# Where others use the machine too, one refusal in twenty waits for a core.
LEAST_SHARE, PART, MOST_SECONDS, LOAD_SECONDS = (0.9, 0.95, 0.05, 20.0) if STRICT else (0.6, 0.5, 0.25, 6.0)
CLIENTS, TIMES = 64, 5
CODE = """
import time

class Model:
    def predict(self, records):
        time.sleep(sum(record["seconds"] for record in records))
        return [1 for _ in records]
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(guest.lacking()), reason=guest.lacking())]


def overload(to: str, load: Load) -> None:
    """Its capacity, and then five times as much."""
    load.clients = CLIENTS
    peak = goodput(load.run(), load.seconds)
    load.rate = TIMES * peak
    answers = load.run()
    good, counts = goodput(answers, load.seconds), Counter(answer.status for answer in answers)
    print(f"\n{to}: at most {peak:.0f}/s; of {load.rate:.0f}/s {good:.0f}/s are answered, {good / peak:.2f} of that")
    for status, count in sorted(counts.items()):
        half, most = (percentile(answers, status, part) * 1e3 for part in (0.5, 0.95))
        print(f"  {count:6} times {status}: p50 {half:.1f} ms, p95 {most:.1f} ms")
    assert set(counts) == {200, 429}
    assert good >= LEAST_SHARE * peak
    assert percentile(answers, 429, PART) <= MOST_SECONDS
    assert all(answer.retry_after >= 1 for answer in answers if answer.status == 429)


def body(seconds: float) -> str:
    return json.dumps({"instances": [{"seconds": seconds}]})


@contextmanager
def replica(folder: Path) -> Iterator[int]:
    """Its port."""
    package, ready = folder / "package", folder / "ready"
    package.mkdir()
    (package / "model.py").write_text(CODE)
    (package / packages.MODEL).write_text(json.dumps(custom.describe(package)))
    words = ["-m", "services.deployment.replica", "--package", str(package), "--ready-file", str(ready)]
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, "LEPTON_REPLICA_TOKEN": "t"})
    try:
        assert eventually(ready.exists, timeout=30)
        yield int(json.loads(ready.read_text())["port"])
    finally:
        process.kill()
        process.wait()


def test_a_replica(tmp_path: Path) -> None:
    with replica(tmp_path) as port:
        overload("a replica", Load(port, "/predict", {"x-lepton-replica-token": "t"}, body(0.005), LOAD_SECONDS))


def test_through_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.py").write_text(CODE)
    with running(tmp_path / "home") as platform, platform.client() as client:
        version = client.models.push("slow", tmp_path / "model")
        client.endpoints.create("slow", f"slow@{version.number}")
        client.endpoints.wait_ready("slow", 120)
        headers = {"authorization": f"Bearer {platform.key}"}
        overload("through the gateway", Load(platform.port, "/v1/endpoints/slow/predict", headers, body(0.02), LOAD_SECONDS))
