"""Several workers by torchrun: the losses of one, and an end for all when one ends."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from services.training.engine.conftest import Trained, lay_out
from services.training.engine.process_test import ROOT, wait_for

MLP = {"task": "regression", "model": {"architecture": "mlp", "params": {"hidden": [16, 16]}}}
CNN = {"task": "image_classification", "target": "label", "model": {"architecture": "cnn", "params": {"channels": [8, 8], "dropout": 0.0}}}

WRITER = {"architecture": "transformer", "params": {"width": 16, "heads": 2, "layers": 1, "max_length": 12, "dropout": 0.0}}
TEXT = {"task": "text_generation", "model": WRITER}


def start(folder: Path, workers: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PET_STANDALONE": "1", "PET_NPROC_PER_NODE": str(workers), "PYTHONPATH": str(ROOT)}
    with (folder / "stderr.log").open("wb") as stderr:
        return subprocess.Popen([sys.executable, "-m", "services.training.engine", str(folder)], env=environment, stderr=stderr)


def table(rows: int) -> pa.Table:
    x = np.random.default_rng(0).normal(size=(rows, 3))
    return pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": x @ [1.0, -2.0, 0.5] + np.sin(3 * x[:, 0])})


def pictures(rows: int) -> pa.Table:
    random, files = np.random.default_rng(0), []
    for row in range(rows):
        pixels = random.integers(0, 128, (12, 12), np.uint8)
        pixels[:, 6 * (row % 2) :] += np.uint8(60)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return pa.table({"image": files, "label": [str(row % 2) for row in range(rows)]})


def texts(rows: int) -> pa.Table:
    return pa.table({"y": ["one two " * (1 + row % 3) for row in range(rows)]})


def figures(trained: Trained, name: str) -> list[float]:
    return [event["value"] for event in trained.of("metric") if event["name"] == name]


@pytest.mark.parametrize(
    ("spec", "data", "batch_size"), [(MLP, table(131), 25), (CNN, pictures(67), 10), (TEXT, texts(33), 7)], ids=["mlp", "cnn", "text"]
)
def test_two_workers_have_the_losses_of_one(
    tmp_path: Path, train: Callable[..., Trained], spec: dict[str, Any], data: pa.Table, batch_size: int
) -> None:
    training = {
        "epochs": 6,
        "batch_size": batch_size,
        "learning_rate": 0.01,
        "seed": 5,
        "validation_fraction": 0.2,
        "double_precision": True,
    }
    one = train(data, "one", **spec, training=training)
    folder = lay_out(tmp_path / "two", {"all": data}, **spec, training=training)
    assert start(folder, 2).wait(120) == 0, (folder / "stderr.log").read_text()
    two = Trained(folder)
    for name in ("loss", "validation_loss"):
        assert len(figures(one, name)) == 6
        assert figures(two, name) == pytest.approx(figures(one, name), rel=1e-6)
    assert two.result["metrics"] == pytest.approx(one.result["metrics"], rel=1e-4)
    assert len(two.of("result")) == 1, "the first worker alone tells"


def test_a_last_batch_of_fewer_rows_than_workers(tmp_path: Path, train: Callable[..., Trained]) -> None:
    """20 rows in batches of 6 leave 2 for 3 workers; the pictures' batch norm is over what there is."""
    training = {"epochs": 3, "batch_size": 6, "seed": 5, "test_fraction": 0.0}
    one = train(pictures(20), "one", **CNN, training=training)
    folder = lay_out(tmp_path / "three", {"all": pictures(20)}, **CNN, training=training)
    assert start(folder, 3).wait(120) == 0, (folder / "stderr.log").read_text()
    assert figures(Trained(folder), "loss") == pytest.approx(figures(one, "loss"), rel=1e-4, abs=1e-4)


def test_fewer_rows_than_workers_are_refused_with_words(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "few", {"all": table(2)}, **MLP, training={"epochs": 3, "test_fraction": 0.0})
    assert start(folder, 3).wait(120) == 3
    (error,) = Trained(folder).of("error")
    assert error["code"] == "invalid_spec"
    assert "3 workers cannot share 2 training rows" in json.dumps(error)


@pytest.mark.parametrize("which", [0, 1])
def test_one_killed_ends_all_and_a_new_gang_goes_on(tmp_path: Path, which: int) -> None:
    spec = {**MLP, "training": {"epochs": 400, "batch_size": 8, "seed": 5}}
    folder = lay_out(tmp_path / "killed", {"all": table(131)}, **spec)
    gang = start(folder, 2)
    wait_for(folder, "checkpoint", 3)
    workers = sorted(psutil.Process(gang.pid).children(), key=lambda each: int(each.environ()["RANK"]))
    began = time.monotonic()
    workers[which].kill()
    assert gang.wait(30) == -signal.SIGKILL
    assert time.monotonic() - began < 20
    assert (folder / "stderr.log").read_text().endswith(f"worker {which} ended first, with signal 9\n")
    assert not [each for each in workers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    told = max(event["epoch"] for event in Trained(folder).of("checkpoint"))
    assert start(folder, 2).wait(120) == 0, (folder / "stderr.log").read_text()
    assert Trained(folder).result["epochs"] == 400
    assert [event["text"] for event in Trained(folder).of("log")][-1].startswith(f"resumed after epoch {told} of")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them")
def test_workers_end_with_what_started_them(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "orphaned", {"all": table(131)}, **MLP, training={"epochs": 100_000})
    gang = start(folder, 2)
    wait_for(folder, "checkpoint", 1)
    workers = psutil.Process(gang.pid).children()
    gang.kill()
    gang.wait()
    gone, alive = psutil.wait_procs(workers, timeout=5)
    assert len(gone) == 2
    assert not alive
