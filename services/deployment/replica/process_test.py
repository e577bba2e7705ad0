"""The replica as a process: ready file, an answer over a socket, and a clean end."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from libs.modelkit import custom, guest
from libs.modelkit import package as packages
from libs.modelkit.export import export
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import fit_table
from libs.modelkit.target import fit_target

ROOT = Path(__file__).parents[3]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    fitted = fit_table({"a": np.array([1.0, 2.0, 4.0])}, {"a": "double"})
    target = fit_target("y", "double", np.array([10.0, 20.0, 40.0]), classify=False)
    module = torch.nn.Linear(1, 1).double()
    made = Package("regression", "linear", {}, "float64", fitted, target, {}, tmp_path / "package")
    packages.write(made, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    assert export(module, np.ones((2, 1)), made.folder) == ""
    return made.folder


def start(package: Path, ready: Path, token: str = "t") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services.deployment.replica", "--package", str(package), "--ready-file", str(ready)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "LEPTON_REPLICA_TOKEN": token}, stderr=subprocess.PIPE)


def until_ready(process: subprocess.Popen[bytes], path: Path) -> dict[str, object]:
    end = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    return json.loads(path.read_text())


def test_answers_once_the_ready_file_is_there_and_leaves_cleanly(package, tmp_path):
    process = start(package, tmp_path / "ready.json")
    ready = until_ready(process, tmp_path / "ready.json")
    assert ready["pid"] == process.pid
    connection = http.client.HTTPConnection(ready["host"], ready["port"])
    connection.request("POST", "/predict", b'{"instances": [{"a": 1}]}', {"x-lepton-replica-token": "t"})
    assert connection.getresponse().status == 200
    connection.close()
    resident = int(next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line).split()[1])
    assert resident < 100_000
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[1] == b""
    assert process.returncode == 0


def test_says_why_it_does_not_start(package, tmp_path):
    process = start(tmp_path, tmp_path / "ready.json")
    assert b"model.json" in process.communicate(timeout=20)[1]
    assert process.returncode == 3
    process = start(package, tmp_path / "ready.json", token="")
    assert b"LEPTON_REPLICA_TOKEN is not set" in process.communicate(timeout=20)[1]
    assert process.returncode == 2


CODE = """
import os, time
class Model:
    def load(self, folder):
        self.added = float(open(folder + "/added").read())
    def predict(self, records):
        for record in records:
            if record == "die":
                os._exit(3)
            if record == "spy":
                open(f"/proc/{os.getppid()}/environ").read()
        return [record + self.added for record in records]
"""


def owners_package(folder: Path, added: str = "0.5") -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(CODE)
    (folder / "added").write_text(added)
    (folder / packages.MODEL).write_text(json.dumps(custom.describe(folder)))
    return folder


def ask(ready: dict[str, object], instances: list[object]) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(ready["host"], ready["port"])
    connection.request("POST", "/predict", json.dumps({"instances": instances}).encode(), {"x-lepton-replica-token": "t"})
    answer = connection.getresponse()
    status, body = answer.status, json.loads(answer.read())
    connection.close()
    return status, body


def test_its_owner_s_code_answers_and_whatever_it_does_the_replica_lives(tmp_path):
    process = start(owners_package(tmp_path / "package"), tmp_path / "ready.json")
    if guest.lacking():
        assert b"Landlock" in process.communicate(timeout=20)[1]
        return
    ready = until_ready(process, tmp_path / "ready.json")
    assert ask(ready, [1, 2]) == (200, {"predictions": [1.5, 2.5]})
    for record, status, words in (("die", 502, "ended before"), ("spy", 502, "PermissionError"), ("x", 502, "TypeError")):
        found, problem = ask(ready, [record])
        assert (found, words in problem["detail"]) == (status, True), problem
        assert ask(ready, [1]) == (200, {"predictions": [1.5]})
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_its_owner_s_code_that_cannot_be_loaded_says_so_itself(tmp_path):
    process = start(owners_package(tmp_path / "package", "much"), tmp_path / "ready.json")
    said = process.communicate(timeout=20)[1]
    assert (b"could not convert string to float" in said) or guest.lacking()
    assert process.returncode == 3
