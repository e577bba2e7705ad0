"""`lepton up`, as it starts, refuses to start, and stops."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.platform import LEPTON, Platform, eventually, free_port, lepton, running


def test_ready_soon_and_nothing_is_left_after_down(tmp_path: Path) -> None:
    with running(tmp_path) as platform:
        assert httpx.get(f"{platform.url}/readyz").status_code == 200
        status = json.loads(lepton("status", "--json", env=platform.env).stdout)
        assert (status["state"], status["url"], status["grpc"]) == ("ready", platform.url, platform.grpc)
        assert {p["name"] for p in status["processes"]} >= {"platform", "worker", "broker"}
        platform.down()
        assert lepton("status", env=platform.env).returncode == 3
        assert lepton("down", env=platform.env).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_ends_with_its_signal(tmp_path: Path, number: signal.Signals) -> None:
    platform = Platform(tmp_path, free_port())
    env = {**os.environ, **platform.env}
    words = ["--port", str(platform.port), "--grpc-port", str(platform.grpc_port)]
    child = subprocess.Popen([LEPTON, "up", *words], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert platform.url in child.stdout.readline()
        processes = platform.processes()
        assert len(processes) >= 3
        child.send_signal(number)
        assert child.wait(20) == 0
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finally:
        child.kill()


def test_the_first_key_is_told_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    port = free_port()
    env = {"LEPTON_HOME": str(tmp_path), "LEPTON_API_KEY": ""}
    said = json.loads(lepton("up", "--detach", "--json", "--port", str(port), env=env).stdout)
    try:
        assert httpx.get(f"{said['url']}/v1/me", headers={"Authorization": f"Bearer {said['api_key']}"}).status_code == 200
        lepton("down", env=env)
        again = json.loads(lepton("up", "--detach", "--json", "--port", str(port), env=env).stdout)
        assert again["api_key"] == ""
        assert httpx.get(f"{said['url']}/v1/me", headers={"Authorization": f"Bearer {said['api_key']}"}).status_code == 200
    finally:
        lepton("down", env=env)
    secret = said["api_key"].encode()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words in (["up", "--detach"], ["up"]):
            done = lepton(*words, "--port", port, env={"LEPTON_HOME": str(tmp_path)})
            assert done.returncode == 2
            assert f":{port} " in done.stderr
            assert "--port" in done.stderr
            assert len(done.stderr.splitlines()) == 2
        done = lepton("up", "--port", str(free_port()), "--grpc-port", port, env={"LEPTON_HOME": str(tmp_path)})
        assert (done.returncode, f":{port} " in done.stderr, "--grpc-port" in done.stderr) == (2, True, True)


def test_a_home_that_is_in_use(embedded_platform: Platform) -> None:
    done = lepton("up", "--detach", "--port", str(free_port()), env=embedded_platform.env)
    assert done.returncode == 2
    assert f"in use by process {embedded_platform.pid()}" in done.stderr
    assert "lepton down" in done.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = lepton("up", "--detach", env={"LEPTON_HOME": str(tmp_path / "file" / "home")})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "LEPTON_HOME" in done.stderr


def test_after_kill_9_it_starts_where_it_was(tmp_path: Path) -> None:
    with running(tmp_path) as platform:
        with platform.http() as http:
            assert http.post("/v1/datasets", json={"name": "kept"}).status_code == 201
        platform.kill()
        platform.up()
        with platform.http() as http:
            assert http.get("/v1/datasets/kept").json()["name"] == "kept"
        platform.down()


@pytest.mark.parametrize("part", ["standalone.worker", "valkey-server"])
def test_a_killed_part_is_started_again(tmp_path: Path, part: str) -> None:
    with running(tmp_path) as platform:
        (process,) = platform.find(part)
        process.kill()
        assert eventually(lambda: [p for p in platform.find(part) if p.pid != process.pid], timeout=15)
        platform.down()


def test_kill_9_at_random_moments_of_the_start(tmp_path: Path) -> None:
    platform = Platform(tmp_path, free_port())
    for seconds in (0.3, 0.8, 1.2, 1.6):
        child = subprocess.Popen(
            [LEPTON, "up", "--port", str(platform.port), "--grpc-port", str(platform.grpc_port)],
            env={**os.environ, **platform.env},
            stdout=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        child.kill()
        child.wait()
    with running(tmp_path) as last:
        with last.http() as http:
            assert http.get("/v1/me").status_code == 200
        last.down()
