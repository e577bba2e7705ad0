"""LEPTON_HOME on a disk that fills up during an upload, a training run and predictions: words, nothing half done, and on it goes.

The disk is a small tmpfs, mounted where this process and its children alone see it: by root, or in a user namespace. As root a mount
that fails is a failure; another user whose kernel offers no such namespace sees the test skipped with the kernel's words.
"""

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hostile.conftest import RECORD, ROWS, ok, serve, train
from tests.platform import Platform, eventually, running

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
SIZE_MIB = 256
FULL = (503, 507)
PRICE = {"per_row": {"currency": "USD", "micros": 0}}


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A tmpfs at `path`, for this thread and what it starts; gone afterwards with all that was in it."""
    root = os.geteuid() == 0
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        try:
            _call("unshare", CLONE_NEWNS if root else CLONE_NEWNS | CLONE_NEWUSER)
            _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
            _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={SIZE_MIB}m,mode=0700".encode())
        except OSError as error:
            if root:
                raise
            pytest.skip(f"no private mount for this user: {error}")
        try:
            yield
        finally:
            _call("umount2", os.fsencode(path), MNT_DETACH)
            if root:
                _call("setns", before, CLONE_NEWNS)
    finally:
        os.close(before)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with small_disk(tmp_path), running(tmp_path / "home") as platform:
        yield platform
        platform.down()


def fill(disk: Path) -> Path:
    """Takes the last byte."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        block = b"\0" * 65536
        while block:
            try:
                file.write(block)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                block = block[: len(block) // 2]
    return ballast


def full(answer: httpx.Response) -> None:
    """Said in words."""
    assert answer.status_code in FULL, f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:1000]}"
    body = answer.json()
    assert body["code"] in ("storage_full", "unavailable"), body
    assert len(body["detail"]) > 10 and "Errno" not in body["detail"] and "sqlite" not in body["detail"].lower(), body


def state(http: httpx.Client, job: str) -> dict[str, Any]:
    return dict(ok(http.get(f"/v1/training-jobs/{job}")))


def test_a_disk_that_fills_up(platform: Platform) -> None:
    disk = platform.home.parent
    with platform.http() as http:
        ok(http.put("/v1/datasets/line/content", params={"filename": "a.csv"}, content=ROWS))
        train(http, "line", "line@1")
        serve(http, "line", "line@1")
        answered = 0
        for _ in range(3):
            ok(http.post("/v1/endpoints/line/predict", json={"instances": [RECORD]}))
            answered += 1
        body = {
            "name": "long",
            "dataset": "line@1",
            "task": "regression",
            "target": "y",
            "output_model": "long",
            "model": {"architecture": "mlp", "params": {"hidden": [8]}},
            "training": {"epochs": 400, "batch_size": 2},
        }
        job = ok(http.post("/v1/training-jobs", json=body))["id"]
        assert eventually(lambda: state(http, job)["state"] == "running" and state(http, job).get("progress"), 60) or state(http, job)

        ballast = fill(disk)
        pids = {process.pid for process in platform.find("services.standalone")}

        # Everything that would be stored is refused in words; what is there can be read.
        full(http.put("/v1/datasets/more/content", params={"filename": "a.csv"}, content=b"a,b\n" + b"1,2\n" * 500_000))
        for _ in range(20):
            # What databases have left in their last pages may do for a request or two.
            answer = http.post("/v1/datasets", json={"name": f"empty-{time.monotonic_ns()}"})
            assert answer.status_code in (201, *FULL), answer.text
        full(answer)
        full(http.post("/v1/api-keys", json={"name": "no room"}))
        refused = http.post("/v1/training-jobs", json={**body, "name": "short", "output_model": "short"})
        full(refused)
        for path in ("/readyz", "/v1/me", "/v1/datasets", "/v1/datasets/line/versions/1", "/v1/training-jobs", "/v1/endpoints/line"):
            assert http.get(path).status_code == 200, path
        assert http.get("/v1/datasets/more").status_code == 404
        for _ in range(5):
            answer = http.post("/v1/endpoints/line/predict", json={"instances": [RECORD]})
            assert answer.status_code in (200, *FULL), answer.text
            answered += answer.status_code == 200
            # No answer that is not recorded, no record without an answer.
        time.sleep(3)
        assert http.get("/healthz").status_code == 200
        assert pids == {process.pid for process in platform.find("services.standalone")}, "something died of it"

        ballast.unlink()

        # As if nothing had been.
        def uploaded() -> bool:
            answer = http.put("/v1/datasets/more/content", params={"filename": "a.csv"}, content=ROWS)
            assert answer.status_code in (201, *FULL), answer.text
            return answer.status_code == 201

        assert eventually(uploaded, 30, 0.5)
        assert eventually(lambda: http.post("/v1/endpoints/line/predict", json={"instances": [RECORD]}).status_code == 200, 60, 0.5)
        ended = eventually(lambda: (found := state(http, job))["state"] in ("succeeded", "failed", "cancelled") and found, 120, 0.5)
        assert ended, state(http, job)
        if ended["state"] != "succeeded":
            assert ended["error"]["code"] == "storage_full", ended
        assert [each["name"] for each in ok(http.get("/v1/training-jobs"))["training_jobs"]].count("short") == 0
        train(http, "after", "more@1")
        assert not list((platform.home / "artifacts" / "datasets" / "incoming").iterdir())
        used = eventually(lambda: _predictions(http) >= answered + 1, 30)
        assert used, f"{_predictions(http)} predictions are recorded, {answered + 1} were answered"
    platform.down()
    platform.up()
    with platform.http() as http:
        assert {"line", "more"} <= {each["name"] for each in ok(http.get("/v1/datasets"))["datasets"]}


def _predictions(http: httpx.Client) -> float:
    return float(sum(line["quantity"] for line in ok(http.get("/v1/usage"))["lines"] if line["metric"] == "predictions"))
