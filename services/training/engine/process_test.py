"""The engine as a process: exit codes, and kill -9 in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from services.training.engine.conftest import Trained, lay_out

ROOT = Path(__file__).parents[3]
TABLE = pa.table({"x": np.arange(400.0) % 17, "z": np.arange(400.0) % 5, "y": ["odd" if i % 2 else "even" for i in range(400)]})
SPEC = {"task": "classification", "model": {"architecture": "mlp", "params": {"dropout": 0.2}}, "training": {"epochs": 60, "seed": 3}}


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "services.training.engine", str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)


def wait_for(folder: Path, kind: str, epoch: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        text = (folder / "events.jsonl").read_text() if (folder / "events.jsonl").exists() else ""
        if any(json.loads(line).get("epoch", 0) >= epoch for line in text.splitlines()[:-1] if f'"{kind}"' in line):
            return
        time.sleep(0.002)
    raise TimeoutError(kind)


def test_killed_and_started_again_gives_the_weights_of_an_unbroken_run(tmp_path):
    whole = lay_out(tmp_path / "whole", {"all": TABLE}, **SPEC)
    assert start(whole).wait(60) == 0
    broken = lay_out(tmp_path / "broken", {"all": TABLE}, **SPEC)
    process = start(broken)
    wait_for(broken, "checkpoint", 4)
    process.kill()
    process.wait()
    assert not (broken / "package").exists()
    with (broken / "events.jsonl").open("a") as file:
        file.write('{"type": "torn')
    assert start(broken).wait(60) == 0
    assert Trained(broken).weights == Trained(whole).weights
    _require_whole_lines_after_the_torn_one(broken)


def _require_whole_lines_after_the_torn_one(folder: Path) -> None:
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert lines.count('{"type": "torn') == 1
    assert json.loads(lines[-1])["name"] == "training.run"


def test_what_the_user_can_change_exits_with_3(tmp_path):
    folder = lay_out(tmp_path, {"all": TABLE}, **{**SPEC, "target": "yy"})
    process = start(folder)
    assert process.wait(60) == 3
    error = Trained(folder).of("error")[0]
    assert error["code"] == "invalid_data"
    assert "did you mean" in error["detail"] or "there are" in error["detail"]


def test_sigterm_ends_it_at_once(tmp_path):
    folder = lay_out(tmp_path, {"all": TABLE}, **{**SPEC, "training": {"epochs": 100_000}})
    process = start(folder)
    wait_for(folder, "checkpoint", 1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM
    assert time.monotonic() - began < 1
