"""k8s/overlays/prod as it is meant: two of each, mutual TLS, scalers, and all that it stands on in another namespace."""

import base64
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.cluster import SERVICES, Cluster, kubectl, require_cluster
from tests.composed import ROOT
from tests.integration.rpc.scene import Authority
from tests.platform import LEPTON, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CALLED = ("accounts", "data", "compute", "training", "deployment", "marketplace")
ASKING = 8
# Less than the manifests say: a test's load is small.
BUSY = "20m"


def tool(word: str, namespace: str, **environment: str) -> str:
    own = {"LEPTON_NAMESPACE": namespace, **environment}
    done = subprocess.run(
        [ROOT / "tools" / "k8s.sh", word], env={**os.environ, **own}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, f"tools/k8s.sh {word}\n{done.stdout[-1000:]}{done.stderr[-4000:]}"
    return done.stdout


@dataclass
class Prod(Cluster):
    """The overlay in `namespace`, its backends in `backends`."""

    backends: str = ""

    def up(self, **_environment: str) -> "Prod":
        """Applies it, in the steps of docs/kubernetes.md."""
        for namespace in (self.backends, self.namespace):
            kubectl("create", "namespace", namespace)
        at = {
            "LEPTON_POSTGRES": f"postgres.{self.backends}:5432",
            "LEPTON_EVENTS_URL": f"kafka://kafka.{self.backends}:9092",
            "LEPTON_STORAGE_URL": f"s3+http://minio.{self.backends}:9000",
        }
        made = tool("secrets", self.namespace, **at)
        kubectl("--namespace", self.backends, "apply", "--filename", "-", text=made.replace(self.namespace, self.backends))
        kubectl("--namespace", self.namespace, "apply", "--filename", "-", text=made)
        tool("backends", self.backends)
        # Whose clients are in another namespace.
        on = ("--namespace", self.backends)
        kubectl(*on, "delete", "networkpolicies", "--all")
        kubectl(*on, "set", "env", "statefulset/kafka", f"KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://kafka.{self.backends}:9092")
        kubectl(*on, "rollout", "status", "statefulset/kafka", "--timeout", "120s", timeout=130)
        tasks = self._secret("lepton-platform", "LEPTON_PLATFORM_TASKS_URL").replace("@redis:", f"@redis.{self.backends}:")
        patch = f'{{"stringData": {{"LEPTON_PLATFORM_TASKS_URL": "{tasks}"}}}}'
        self.kubectl("patch", "secret", "lepton-platform", "--patch-file", "/dev/stdin", text=patch)
        self._certify()
        self.apply()
        for service in SERVICES:
            self.rolled_out(service)
        host = kubectl("get", "nodes", "--output", 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
        port = self.kubectl("get", "service", "gateway", "--output", "jsonpath={.spec.ports[0].nodePort}")
        self.address, self.key = f"http://{host}:{port}", self._secret("lepton-accounts", "LEPTON_ACCOUNTS_BOOTSTRAP_KEY")
        return self

    def apply(self) -> None:
        """The overlay with mutual TLS, a port to reach it at, and scalers that a test can move."""
        (ROOT / "build" / "k8s").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ROOT / "build" / "k8s") as folder:
            Path(folder, "prod.yaml").write_text(tool("manifests", self.namespace, LEPTON_OVERLAY="prod"))
            Path(folder, "kustomization.yaml").write_text(
                "resources: [prod.yaml]\ncomponents: [../../../k8s/components/tls]\npatches:\n"
                "  - target: {kind: Service, name: gateway}\n    patch: |\n"
                "      - {op: add, path: /spec/type, value: NodePort}\n"
                "  - target: {kind: HorizontalPodAutoscaler, name: gateway}\n    patch: |\n"
                f"      - {{op: replace, path: /spec/metrics/0/resource/target/averageValue, value: {BUSY}}}\n"
            )
            kubectl("apply", "--server-side", "--kustomize", folder)

    def down(self) -> None:
        for namespace in (self.namespace, self.backends):
            tool("down", namespace)

    def _certify(self) -> None:
        """What cert-manager would write."""
        with tempfile.TemporaryDirectory() as folder:
            issued = Authority(Path(folder)).issue("lepton", *CALLED)
            files = {"ca.crt": issued.ca_file, "tls.crt": issued.cert_file, "tls.key": issued.key_file}
            self.kubectl("create", "secret", "generic", "lepton-tls", *(f"--from-file={name}={path}" for name, path in files.items()))

    def _secret(self, name: str, key: str) -> str:
        return base64.b64decode(self.kubectl("get", "secret", name, "--output", f"jsonpath={{.data.{key}}}")).decode()


@pytest.fixture(scope="module")
def prod() -> Iterator[Prod]:
    require_cluster()
    name = f"lepton-prod-{secrets.token_hex(4)}"
    platform = Prod(name, 0, backends=f"backends-{secrets.token_hex(4)}")
    try:
        yield platform.up()
    finally:
        platform.down()


def test_two_of_each_run_and_one_may_be_taken_away(prod: Prod) -> None:
    for service in SERVICES:
        assert eventually(lambda service=service: len(prod.pods(service)) == 2, timeout=90), (service, prod.pods(service))
        prod.rolled_out(service)
    budgets = {each["metadata"]["name"] for each in prod.get("poddisruptionbudgets")}
    assert budgets == set(SERVICES)
    assert eventually(lambda: all(each["status"]["disruptionsAllowed"] == 1 for each in prod.get("poddisruptionbudgets")), timeout=60)
    for deployment in prod.get("deployments"):
        (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        # A cluster of one node has them both on it.
        assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")


def test_who_shows_no_certificate_is_not_answered(prod: Prod, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key")}
    for name, path in files.items():
        path.write_text(prod._secret("lepton-tls", name.replace(".", "\\.")))
    for shown, answered in ((False, False), (True, True)):
        context = ssl.create_default_context(cafile=files["ca.crt"])
        context.set_alpn_protocols(["h2"])
        if shown:
            context.load_cert_chain(files["tls.crt"], files["tls.key"])
        assert bool(first_word(prod, context)) is answered


def test_the_demonstration_runs_against_it(prod: Prod) -> None:
    environment = {**prod.env, "PATH": str(Path(sys.executable).parent)}
    words = [LEPTON, "demo", "--url", prod.url]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + prod.log()
    assert done.stdout.count("✓") == 2
    assert "keeps no traces" in done.stdout


def test_gateways_are_added_under_load_and_stay_when_it_is_applied_again(prod: Prod) -> None:
    def wanted() -> int:
        return int(prod.kubectl("get", "deployment", "gateway", "--output", "jsonpath={.spec.replicas}"))

    scalers = {each["metadata"]["name"] for each in prod.get("horizontalpodautoscalers")}
    assert scalers == {"gateway", "data-worker"}
    assert eventually(lambda: wanted() == 2, timeout=60), wanted()
    with asked(prod):
        assert eventually(lambda: wanted() > 2, timeout=180, interval=1), prod.kubectl("describe", "horizontalpodautoscaler", "gateway")
        prod.apply()
        assert wanted() > 2
        prod.rolled_out("gateway")


@contextmanager
def asked(prod: Prod) -> Iterator[None]:
    """Requests without end, each on a new connection: it may lead to another gateway."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                with prod.http() as http:
                    for _ in range(20):
                        http.get("/v1/models")
            except httpx.TransportError:
                continue

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(ASKING)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def first_word(prod: Prod, context: ssl.SSLContext) -> bytes:
    """What accounts, which has to prove its name, says of itself; a server of HTTP/2 speaks first."""
    address = prod.get("pods", "--selector", "app.kubernetes.io/name=accounts")[0]["status"]["podIP"]
    try:
        with (
            socket.create_connection((address, 50051), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="accounts") as tls,
        ):
            return tls.recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""
