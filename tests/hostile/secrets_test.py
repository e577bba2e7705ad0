"""Secrets are where they belong and nowhere else: no file, log, trace, event, command line or environment tells them."""

import json
import os
import re
import sqlite3
import stat
import time
from pathlib import Path

import grpc
import psutil
import pytest

from libs.inference import SERVICE
from tests.hostile.conftest import RECORD, Town, ok

# A signed token of one service to another.
SERVICE_TOKEN = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}")


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]


def replica_tokens(home: Path) -> list[str]:
    with sqlite3.connect(f"file:{home}/databases/deployment.db?mode=ro", uri=True) as database:
        return [token for (token,) in database.execute("SELECT token FROM replicas WHERE token != ''")]


@pytest.fixture
def busy(town: Town) -> Town:
    """Keys in every place where somebody may put one by mistake; all of it has to be forgotten."""
    key = town.keys["victim"]
    with town.http("victim") as http:
        ok(http.post("/v1/endpoints/canary-endpoint/predict", json={"instances": [RECORD]}))
        http.get(f"/v1/datasets/{key}")
        http.post("/v1/datasets", json={"name": "x", "api_key": key})
        http.get("/v1/me", headers={"x-other": key, "tracestate": f"a={key}"})
    with town.platform.http("") as http:
        http.get("/v1/me", headers={"authorization": f"Basic {key}"})
    # Spans are written a moment later.
    time.sleep(2)
    return town


def test_no_file_tells_a_secret(busy: Town) -> None:
    home = busy.platform.home
    private = "".join((home / "identity.pem").read_text().splitlines()[1:-1])
    tokens = replica_tokens(home)
    assert private and tokens
    secrets = {**busy.keys} | {"the first key": busy.platform.key, "the identity": private}
    found = []
    for path in files(home):
        content = path.read_bytes()
        flat = content.replace(b"\n", b"")
        found += [f"{name} in {path}" for name, secret in secrets.items() if secret.encode() in flat and path.name != "identity.pem"]
        if not path.name.startswith("deployment.db"):
            found += [f"a replica's token in {path}" for token in tokens if token.encode() in content]
        if SERVICE_TOKEN.search(content):
            found.append(f"a service's token in {path}")
    assert not found, found


def test_nobody_else_may_look(town: Town) -> None:
    home = town.platform.home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in files(home):
        if path.parts[len(home.parts)] == "artifacts":
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o022, f"{path} is writable by others: {mode:o}"
        if path.name in ("identity.pem", "first-key", "running.json") or "databases" in path.parts or path.name.endswith(".db"):
            assert not mode & 0o077, f"{path} is readable by others: {mode:o}"
    for folder in Path("/tmp").glob("lepton-*"):
        for path in folder.iterdir() if folder.stat().st_uid == os.getuid() and folder.is_dir() else ():
            if path.is_socket():
                assert not stat.S_IMODE(folder.stat().st_mode) & 0o077, f"{folder} is open to others"


def test_no_process_shows_a_secret(town: Town) -> None:
    """Command lines are everybody's to read; environments are their user's, and of children hold only what they need."""
    home = town.platform.home
    private = (home / "identity.pem").read_text().splitlines()[1]
    tokens = replica_tokens(home)
    keys = [*town.keys.values(), town.platform.key]
    platform, *children = town.platform.processes()
    assert len(children) >= 4
    for process in (platform, *children):
        try:
            line, environment = " ".join(process.cmdline()), "\n".join(f"{k}={v}" for k, v in process.environ().items())
        except psutil.NoSuchProcess:
            continue
        assert not [secret for secret in (*keys, *tokens, private) if secret in line], f"the command line of {process}"
        if process != platform:
            assert not [secret for secret in (*keys, private) if secret in environment], f"the environment of {process}: {line}"


def test_no_answer_tells_where_replicas_are_and_how_they_are_asked(town: Town) -> None:
    tokens = replica_tokens(town.platform.home)
    with town.http("victim") as http:
        for path in ("/v1/endpoints/canary-endpoint", "/v1/endpoints/canary-endpoint/replicas", f"/v1/traces/{town.trace}"):
            answer = http.get(path)
            assert not [token for token in tokens if token in answer.text], path
            assert str(town.platform.home) not in answer.text, path
        answer = http.post("/v1/endpoints/canary-endpoint/predict", json={"instances": [RECORD]})
        assert not [token for token in tokens if token in str(answer.headers)]
        for each in ok(http.get("/v1/api-keys"))["api_keys"]:
            assert "secret" not in each and "sha256" not in str(each)


def test_replicas_answer_to_the_gateway_alone(town: Town) -> None:
    """Anybody on the machine can connect to their ports."""
    import httpx

    with sqlite3.connect(f"file:{town.platform.home}/databases/deployment.db?mode=ro", uri=True) as database:
        urls = [url for (url,) in database.execute("SELECT url FROM replicas WHERE url != '' AND token != ''")]
    assert urls
    for url in urls:
        assert url.startswith("http://127.0.0.1:")
        for path in ("/predict", "/healthz", "/v2", "/v2/models/canary-endpoint", "/nothing"):
            for token in ("", "x", "a" * 43):
                try:
                    answer = httpx.get(url + path, headers={"x-lepton-replica-token": token})
                except httpx.TransportError:
                    continue
                assert answer.status_code == 401, f"{path}: {answer.status_code}"
    said = [json.loads(path.read_bytes()) for path in town.platform.home.rglob("ready")]
    assert said
    for port in [each["grpc_port"] for each in said]:
        for token in ("", "x", "a" * 43):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", metadata=[("x-lepton-replica-token", token)], timeout=10)
            assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
