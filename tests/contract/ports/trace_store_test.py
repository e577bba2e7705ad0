"""What every trace store does with what `setup` has sent."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import structlog

from libs import telemetry
from libs.errors import AppError, Transient
from libs.telemetry.redaction import HIDDEN
from tests.collector import Collector
from tests.platform import free_port

Spans = list[telemetry.Span]


@dataclass(frozen=True)
class Traces:
    """A store, and how long what was sent may take to be in it."""

    store: telemetry.TraceStore
    seconds: float

    async def of(self, trace_id: str, count: int) -> Spans:
        """The spans, once there are `count`."""
        telemetry.flush()
        found: Spans = []
        for _ in range(int(self.seconds * 10) + 1):
            if len(found := await self.store.spans(trace_id)) >= count:
                break
            await asyncio.sleep(0.1)
        return found


@pytest.fixture(params=["sqlite", "jaeger"])
def traces(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traces]:
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    if request.param == "sqlite":
        url = reads = f"sqlite://{tmp_path}/traces.db"
        seconds = 0.0
    else:
        running: Collector = request.getfixturevalue("collector")
        url, reads, seconds = running.telemetry_url, running.traces_url, 20.0
    telemetry.setup("platform", url=url)
    yield Traces(telemetry.open_trace_store(reads), seconds)
    telemetry.shutdown()
    structlog.configure(**config)
    root.handlers, root.level = handlers, level


async def test_services_that_share_a_process_come_back_under_their_names(traces: Traces) -> None:
    tracer = telemetry.tracer()
    with tracer.start_as_current_span("POST /v1/jobs", attributes={telemetry.WORKSPACE: "acme", "url.path": "/v1/jobs"}) as root:
        trace_id = telemetry.current_trace_id()
        epoch = {"n": 3, "share": 0.5, "last": True, "big": 2**53 + 1}
        with tracer.start_as_current_span("start", attributes={telemetry.SERVICE: "training"}):
            tracer.start_span("epoch", attributes=epoch).end()
    found = {span.name: span for span in await traces.of(trace_id, 3)}
    assert {name: span.service for name, span in found.items()} == {
        "POST /v1/jobs": "platform",
        "start": "training",
        "epoch": "training",
    }
    assert found["epoch"].parent_id == found["start"].span_id
    assert found["start"].parent_id == found["POST /v1/jobs"].span_id
    assert found["POST /v1/jobs"].parent_id == ""
    assert found["POST /v1/jobs"].attributes == {telemetry.WORKSPACE: "acme", "url.path": "/v1/jobs"}
    assert found["epoch"].attributes == {telemetry.WORKSPACE: "acme", **epoch}
    assert {span.trace_id for span in found.values()} == {trace_id}
    assert abs(found["POST /v1/jobs"].start_ns - root.start_time) < 1000  # type: ignore[attr-defined]
    assert abs(found["POST /v1/jobs"].end_ns - root.end_time) < 2000  # type: ignore[attr-defined]


async def test_an_error_keeps_its_words(traces: Traces) -> None:
    with pytest.raises(ZeroDivisionError), telemetry.tracer().start_as_current_span("divide"):
        trace_id = telemetry.current_trace_id()
        _ = 1 / 0
    with telemetry.tracer().start_as_current_span("fine"):
        fine = telemetry.current_trace_id()
    (failed,), (well,) = await traces.of(trace_id, 1), await traces.of(fine, 1)
    assert "division by zero" in failed.status
    assert well.status == ""


async def test_a_span_reported_twice_is_one(traces: Traces) -> None:
    with telemetry.tracer().start_as_current_span("job"):
        traceparent, trace_id = telemetry.inject()["traceparent"], telemetry.current_trace_id()
    start = time.time_ns() // 10**9 * 10**9 - 10**9
    report = {"name": "epoch 1", "start_ns": start, "end_ns": start + 5000, "traceparent": traceparent, "service": "training"}
    assert telemetry.record_span(report) == telemetry.record_span(report) != ""
    telemetry.record_span({**report, "name": "epoch 2", "start_ns": start + 5000, "end_ns": start + 9000, "error": "nan"})
    found = await traces.of(trace_id, 3)
    assert [span.name for span in found] == ["epoch 1", "epoch 2", "job"]
    assert (found[0].start_ns, found[0].end_ns, found[1].status) == (start, start + 5000, "nan")


async def test_secrets_are_not_kept(traces: Traces) -> None:
    attributes = {"authorization": "Bearer abcdefghijklmnop", "url": "redis://:hunter22@localhost:6379/0", "page_token": "bmV4dA"}
    with telemetry.tracer().start_as_current_span("call", attributes=attributes):
        trace_id = telemetry.current_trace_id()
    (span,) = await traces.of(trace_id, 1)
    assert span.attributes == {"authorization": HIDDEN, "url": f"redis://:{HIDDEN}@localhost:6379/0", "page_token": "bmV4dA"}


async def test_odd_values_do_not_cost_the_others(traces: Traces) -> None:
    with telemetry.tracer().start_as_current_span("work") as span:
        trace_id = telemetry.current_trace_id()
        span.set_attribute("path", "/v1/ü\U0001f600/\x00")
        with telemetry.tracer().start_as_current_span("inside"):
            pass
    found = await traces.of(trace_id, 2)
    assert sorted(span.name for span in found) == ["inside", "work"]


@pytest.mark.parametrize("trace_id", ["0" * 31 + "1", "f" * 32, "", "x" * 32, "../../search", "a" * 1000])
async def test_an_unknown_trace_has_no_spans(traces: Traces, trace_id: str) -> None:
    assert await traces.store.spans(trace_id) == []


async def test_a_jaeger_that_is_away_is_said_in_words() -> None:
    with pytest.raises(Transient, match="cannot be reached; try again"):
        await telemetry.open_trace_store(f"jaeger+http://127.0.0.1:{free_port()}").spans("a" * 32)


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (500, b"oops", "unavailable"),
        (200, b"<html>", "upstream_failed"),
        (200, b'{"data": [{"spans": [{}], "processes": {}}]}', "upstream_failed"),
        (200, b"[]", "upstream_failed"),
    ],
)
async def test_what_is_no_answer_of_jaeger_is_said_in_words(
    answering: Callable[[int, bytes], str], status: int, body: bytes, code: str
) -> None:
    with pytest.raises(AppError) as refused:
        await telemetry.open_trace_store(f"jaeger+{answering(status, body)}").spans("a" * 32)
    assert refused.value.code == code


async def test_a_trace_that_is_too_large_is_refused(answering: Callable[[int, bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.telemetry.jaeger.READ_BYTES", 1 << 20)
    with pytest.raises(AppError, match="is larger than 1 MiB") as refused:
        await telemetry.open_trace_store(f"jaeger+{answering(200, b' ' * (2 << 20))}").spans("a" * 32)
    assert refused.value.code == "too_large"


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """Starts a server that always answers the same; its URL."""
    servers: list[HTTPServer] = []

    def start(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
