"""What docs/compose.md promises of the platform in containers, and its commands."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.composed import ROOT, SERVICES, Composed
from tests.platform import LEPTON, eventually

CONTROL_PLANE = ("gateway", "accounts", "compute", "training", "deployment", "marketplace")


def inspect(*words: str) -> Any:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


def test_the_demonstration_runs_against_it_as_often_as_one_likes(composed_platform: Composed) -> None:
    for _ in range(2):
        words = [LEPTON, "demo", "--url", composed_platform.url]
        environment = {**composed_platform.env, "PATH": str(Path(sys.executable).parent)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("✓") == 2


def test_a_trace_of_the_job_crosses_processes(composed_platform: Composed) -> None:
    with composed_platform.workspace("traced").http() as http:
        answer = http.put("/v1/datasets/t/content", params={"filename": "t.csv"}, content="a,b\n1,2\n")
        assert answer.status_code == 201
        trace = answer.headers["x-lepton-trace-id"]

        def services() -> set[str]:
            found = http.get(f"/v1/traces/{trace}")
            return {span["service"] for span in found.json()["spans"]} if found.status_code == 200 else set()

        assert eventually(lambda: {"gateway", "data"} <= services(), timeout=30), services()


def test_large_files_go_to_the_store_itself_and_come_from_there(composed_platform: Composed) -> None:
    tenant = composed_platform.workspace("large")
    data = "".join(["a,b,c\n", *(f"{n},{n * 7919 % 1000003},{n * 104729 % 15485863}\n" for n in range(500_000))]).encode()
    with tenant.client() as client:
        assert client.datasets.upload("large", data, filename="large.csv").rows == 500_000
    with tenant.http() as http:
        announced = http.post("/v1/uploads", json={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
        assert announced.status_code == 201
        assert announced.json()["url"].startswith(f"http://127.0.0.1:{composed_platform.store_port}/lepton-datasets/")
        answer = http.get("/v1/datasets/large/versions/1/content")
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(f"http://127.0.0.1:{composed_platform.store_port}/lepton-datasets/")
        # Without a key: the address is one.
        assert httpx.get(answer.headers["location"]).content[:4] == b"PAR1"


def test_dead_letters_are_read_inside_a_container(composed_platform: Composed) -> None:
    assert composed_platform.compose("exec", "-T", "accounts", "python", "-m", "services.standalone.dead_letters", "accounts") == ""


def test_processes_are_confined(composed_platform: Composed) -> None:
    for service in SERVICES:
        (facts,) = inspect("inspect", composed_platform.containers(service)[0])
        assert facts["Config"]["User"] == "10001:10001", service
        assert facts["HostConfig"]["ReadonlyRootfs"], service
        assert facts["HostConfig"]["CapDrop"] == ["ALL"], service
        assert "no-new-privileges:true" in facts["HostConfig"]["SecurityOpt"], service
        assert facts["State"]["Health"]["Status"] == "healthy", service
    with pytest.raises(AssertionError, match="Read-only"):
        composed_platform.compose("exec", "-T", "accounts", "touch", "/app/here")


def test_the_control_plane_is_small_and_carries_no_torch(composed_platform: Composed) -> None:
    for service in CONTROL_PLANE:
        image = composed_platform.compose("images", "--format", "json", service)
        (facts,) = inspect("image", "inspect", json.loads(image)[0]["ID"])
        assert facts["Size"] <= 250_000_000, (service, facts["Size"])
        with pytest.raises(AssertionError, match="No module named 'torch'"):
            composed_platform.compose("exec", "-T", service, "python", "-c", "import torch")


def test_prometheus_reads_every_process(composed_platform: Composed) -> None:
    script = "wget -qO- 'http://127.0.0.1:9090/api/v1/query?query=count(up==1)'"

    def how_many() -> int:
        found = json.loads(composed_platform.compose("exec", "-T", "prometheus", "sh", "-c", script))
        return int(found["data"]["result"][0]["value"][1]) if found["data"]["result"] else 0

    assert eventually(lambda: how_many() >= len(SERVICES), timeout=60), how_many()


def test_no_secret_is_in_the_file_or_in_the_logs(composed_platform: Composed) -> None:
    assert not re.search(r"(PASSWORD|SECRET_KEY|PRIVATE_KEY): [A-Za-z0-9]", (ROOT / "compose.yaml").read_text())
    said = composed_platform.compose("logs", "--no-color", *SERVICES)
    secret = {name: value for name, value in composed_platform.secrets.items() if re.search("PASSWORD|SECRET|API_KEY", name)}
    assert len(secret) >= 9
    assert [name for name, value in secret.items() if value in said] == []


def test_env_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    for _ in range(2):
        subprocess.run([ROOT / "tools" / "env.sh", path], check=True, timeout=60)
        text = path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    names = re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)
    assert len(names) == len(set(names))
    subprocess.run([ROOT / "tools" / "env.sh", "--set", path], input="LEPTON_VERSION=2\n", text=True, check=True, timeout=60)
    assert path.read_text() == text + "LEPTON_VERSION=2\n"
