"""The page that Prometheus reads: well formed, on a port of its own, gone with the process, and in nobody's way."""

import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from libs import telemetry
from libs.rpc import generate_key
from libs.telemetry import prometheus as endpoint
from tests.backends import until
from tests.integration.telemetry.conftest import Prometheus
from tests.platform import free_port

pytestmark = pytest.mark.usefixtures("quiet")

_calls = telemetry.counter("lepton_test_calls_total", "Calls.", ("outcome",))
_things = telemetry.gauge("lepton_test_shown", "Things.", ("state",))
_seconds = telemetry.histogram("lepton_test_call_seconds", "Seconds.", ("route",), buckets=(0.1, 1.0))


def page() -> str:
    with urlopen(f"http://{telemetry.metrics_address()}/metrics", timeout=5) as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        return str(answer.read().decode())


def used() -> str:
    """A page with all kinds of metrics on it."""
    telemetry.setup("data", metrics_listen="127.0.0.1:0")
    _calls.add(2, outcome='odd "label"\n\\')
    _things.show({("ready",): 3})
    _seconds.record(0.5, route="/v1/x")
    return page()


def test_the_page_shows_what_was_counted() -> None:
    text = used()
    assert "# TYPE lepton_test_calls_total counter\n" in text
    assert 'lepton_test_calls_total{outcome="odd \\"label\\"\\n\\\\"} 2.0\n' in text
    assert 'lepton_test_shown{state="ready"} 3.0\n' in text
    assert 'lepton_test_call_seconds_bucket{le="1.0",route="/v1/x"} 1.0\n' in text
    assert re.search(r'^target_info\{.*service_name="data".*\} 1.0$', text, re.M)
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"):
        assert re.search(rf"^{name} \d", text, re.M)
    assert 'outcome="odd' in page(), "a second reader sees the same"


def test_promtool_finds_no_fault(prometheus: Prometheus) -> None:
    code, output = prometheus.lint(used())
    assert (code, output) == (0, "")
    assert prometheus.lint("lepton_test 1\nlepton_test 2\n")[0] != 0, "it would find one"


def test_the_port_is_free_again_after_the_end() -> None:
    port = free_port()
    for _ in range(2):
        telemetry.setup("data", metrics_listen=f"127.0.0.1:{port}")
        assert telemetry.metrics_address() == f"127.0.0.1:{port}"
        page()
    telemetry.shutdown()
    assert telemetry.metrics_address() == ""
    with pytest.raises(OSError):
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1)


def test_a_port_that_is_taken_is_said_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=f"metrics cannot be offered on {listen}: Address already in use"):
            telemetry.setup("data", metrics_listen=listen)


@pytest.mark.parametrize("wrong", ["9464", ":9464", "localhost", "localhost:", "localhost:99999", "localhost:http"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port, as 0\.0\.0\.0:9464, or empty"):
        telemetry.setup("data", metrics_listen=wrong)


def test_who_connects_and_says_nothing_keeps_prometheus_out_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SILENCE_SECONDS", 0.3)
    telemetry.setup("data", metrics_listen="127.0.0.1:0")
    host, _, port = telemetry.metrics_address().rpartition(":")
    with socket.create_connection((host, int(port))) as silent:
        started = time.monotonic()
        page()
        assert time.monotonic() - started < 3
        silent.close()


def test_a_reader_that_goes_away_leaves_no_words(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry.setup("data", metrics_listen="127.0.0.1:0", style="json")
    host, _, port = telemetry.metrics_address().rpartition(":")
    for words in (b"GET /metrics HTTP/1.1\r\n\r\n", b"\x00\xff\r\n\r\n", b""):
        with socket.create_connection((host, int(port))) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.sendall(words)
    page()
    assert capfd.readouterr().err == ""


def test_a_service_is_read_where_its_settings_say(tmp_path: Path) -> None:
    """A process as it is deployed, all by its environment."""
    port = free_port()
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "LEPTON_PLATFORM_METRICS_LISTEN": f"127.0.0.1:{port}",
        "LEPTON_PLATFORM_IDENTITY__PRIVATE_KEY": generate_key()[0],
        "LEPTON_COMPUTE_LISTEN": "127.0.0.1:0",
    }

    def shown() -> bool:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        wanted = (
            'lepton_outbox_waiting_events{service="compute"} 0.0',
            'lepton_allocations{pool="",state="queued"} 0.0',
            "lepton_allocation_queue_age_seconds 0.0",
        )
        return set(wanted) <= set(text.splitlines())

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.compute.main"], env=environment, stderr=log)
    try:
        until(shown, "the page of the compute service")
    finally:
        process.terminate()
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
