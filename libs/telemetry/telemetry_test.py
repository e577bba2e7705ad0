"""Spans are named, kept and found; logs say where they come from and keep secrets."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from libs import telemetry
from libs.telemetry.logs import Line, _lines, configure_logs, send_logs, stop_logs
from libs.telemetry.redaction import HIDDEN, redacted
from libs.telemetry.sqlite import SqliteSink
from libs.telemetry.tracing import _pipeline, start_tracing


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    config = structlog.get_config()
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield f"sqlite://{tmp_path}/deep/traces.db"
    telemetry.shutdown()
    # The share that is kept holds for the process: other tests count on all.
    start_tracing("lepton", None)
    structlog.configure(**config)
    logging.getLogger().handlers, logging.getLogger().level = handlers, level


@pytest.fixture
def lines(url: str) -> Callable[[], list[dict[str, Any]]]:
    output = io.StringIO()
    telemetry.setup("platform", url=url)
    configure_logs("info", "json", output)
    # OpenTelemetry may say something of its own about other tests' processors.
    said = "opentelemetry.sdk"
    return lambda: [line for line in map(json.loads, output.getvalue().splitlines()) if not str(line.get("logger", "")).startswith(said)]


async def spans(url: str, trace_id: str) -> list[telemetry.Span]:
    telemetry.flush()
    return await telemetry.open_trace_store(url).spans(trace_id)


async def test_services_in_one_process_keep_their_names(url: str) -> None:
    telemetry.setup("platform", url=url)
    tracer = telemetry.tracer()

    async def work() -> None:
        with tracer.start_as_current_span("work"):
            with trace.get_tracer("libs.rpc").start_as_current_span("call", kind=SpanKind.CLIENT):
                headers = telemetry.inject()
            answer = {"rpc.service": "lepton.training.v1.TrainingService"}
            with tracer.start_as_current_span("answer", telemetry.extract(headers), SpanKind.SERVER, answer) as span:
                span.set_attribute(telemetry.WORKSPACE, "acme")
                with tracer.start_as_current_span("query"):
                    carried = telemetry.inject()
            consumer = trace.get_tracer("accounts")
            with consumer.start_as_current_span("handle", telemetry.extract(carried), SpanKind.CONSUMER):
                pass

    with tracer.start_as_current_span("root"):
        trace_id = telemetry.current_trace_id()
        with telemetry.as_service("data"):
            task = asyncio.create_task(work())
        with trace.use_span(trace.INVALID_SPAN):
            pass
        await task
    found = {span.name: span for span in await spans(url, trace_id)}
    services = {name: span.service for name, span in found.items()}
    assert services["root"] == "platform"
    assert services["answer"] == services["query"] == "training"
    assert services["handle"] == "accounts"
    assert found["query"].attributes == {telemetry.WORKSPACE: "acme"}
    assert found["answer"].parent_id == found["call"].span_id
    assert {span.trace_id for span in found.values()} == {trace_id}
    assert found["root"].parent_id == ""


async def test_a_component_works_in_its_service(url: str) -> None:
    telemetry.setup("platform", url=url)

    class Reconciler:
        async def start(self) -> None:
            self.task = asyncio.create_task(self.step())

        async def step(self) -> str:
            with telemetry.tracer().start_as_current_span("reconcile"):
                return telemetry.current_trace_id()

        async def stop(self) -> None:
            self.trace_id = await self.task

    reconciler = Reconciler()
    component = telemetry.InService("deployment", reconciler)
    await component.start()
    await component.stop()
    assert [span.service for span in await spans(url, reconciler.trace_id)] == ["deployment"]


async def test_spans_are_seen_within_a_second_and_errors_are_told(url: str) -> None:
    telemetry.setup("platform", url=url)
    with pytest.raises(RuntimeError), telemetry.tracer().start_as_current_span("fails", attributes={"api_key": "x", "rows": 3}):
        trace_id = telemetry.current_trace_id()
        raise RuntimeError("no luck")
    ended = time.monotonic()
    while not (found := await telemetry.open_trace_store(url).spans(trace_id)):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert time.monotonic() - ended < 1
    assert found[0].status == "RuntimeError: no luck"
    assert found[0].attributes == {"api_key": HIDDEN, "rows": 3}


async def test_reported_spans_join_the_trace_once(url: str) -> None:
    telemetry.setup("training", url=url)
    with telemetry.tracer().start_as_current_span("job"):
        traceparent, trace_id = telemetry.inject()["traceparent"], telemetry.current_trace_id()
    now = time.time_ns()
    epoch = {"name": "epoch", "start_ns": now, "end_ns": now + 9, "attributes": {"n": 1}, "traceparent": traceparent, "service": "run"}
    under = telemetry.record_span(epoch)
    assert telemetry.record_span(epoch) == under
    telemetry.record_span({"name": "step", "start_ns": now + 1, "end_ns": now + 2, "traceparent": under, "error": "nan"})
    assert telemetry.record_span({"name": "lost", "start_ns": 1, "end_ns": 2, "traceparent": "rubbish"}) == ""
    job, epoch_span, step = await spans(url, trace_id)
    assert (epoch_span.name, epoch_span.service, epoch_span.parent_id) == ("epoch", "run", job.span_id)
    assert (step.parent_id, step.status, step.service) == (epoch_span.span_id, "nan", "training")


async def test_several_processes_write_one_trace(url: str) -> None:
    telemetry.setup("platform", url=url)
    code = """
import sys
from libs import telemetry
telemetry.setup(sys.argv[1], url=sys.argv[2])
for n in range(200):
    with telemetry.tracer().start_as_current_span(f"work {n}", telemetry.extract({"traceparent": sys.argv[3]})): pass
telemetry.shutdown()
"""
    with telemetry.tracer().start_as_current_span("root"):
        traceparent, trace_id = telemetry.inject()["traceparent"], telemetry.current_trace_id()
    workers = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, f"worker-{n}", url, traceparent) for n in range(3)]
    assert [await worker.wait() for worker in workers] == [0, 0, 0]
    found = await spans(url, trace_id)
    assert len(found) == 601
    assert {span.service for span in found} == {"platform", "worker-0", "worker-1", "worker-2"}


async def test_old_and_surplus_spans_are_dropped(url: str, tmp_path: Path) -> None:
    telemetry.setup("platform", url=url)
    with telemetry.tracer().start_as_current_span("job"):
        traceparent, trace_id = telemetry.inject()["traceparent"], telemetry.current_trace_id()
    now = time.time_ns()
    old = now - 7200 * 10**9
    telemetry.record_span({"name": "old", "start_ns": old, "end_ns": old, "traceparent": traceparent})
    for n in range(9):
        telemetry.record_span({"name": "new", "start_ns": now + n, "end_ns": now + n, "traceparent": traceparent})
    assert len(await spans(url, trace_id)) == 11
    SqliteSink(tmp_path / "deep" / "traces.db", keep_seconds=3600).sweep()
    assert len(await spans(url, trace_id)) == 10
    SqliteSink(tmp_path / "deep" / "traces.db", keep_spans=5).sweep()
    assert [span.start_ns for span in await spans(url, trace_id)] == [now + n for n in range(4, 9)]


async def test_a_store_that_cannot_be_written_does_no_harm(url: str, tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file where the folder should be")
    telemetry.setup("platform", url=url)
    with telemetry.tracer().start_as_current_span("work"):
        assert len(telemetry.current_trace_id()) == 32
    assert not telemetry.flush()
    assert await telemetry.open_trace_store(url).spans("0" * 32) == []


def test_the_queue_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.setup("platform", url=url)
    monkeypatch.setattr(_pipeline.spans, "flush", lambda: True)
    for _ in range(9000):
        telemetry.tracer().start_span("x").end()
    assert len(_pipeline.spans._queue) == 8192
    assert _pipeline.spans.dropped >= 800


@pytest.mark.parametrize(
    "wrong",
    ["otlp://collector:4317", "otlp+http://", "otlp+http://me:hunter22@collector:4318", "sqlite:traces.db", "jaeger+http://j:1", "x", ""],
)
def test_an_unknown_url_is_refused(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must be none: or sqlite:///path/traces.db or otlp\+http://collector:4318") as refused:
        telemetry.setup("platform", url=wrong)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["otlp+http://collector:4318", "jaeger://jaeger:16686", "jaeger+http:jaeger"])
def test_traces_are_read_where_they_are_kept(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"must be none: or sqlite:///path/traces.db or jaeger\+http://jaeger:16686"):
        telemetry.open_trace_store(wrong)


def test_without_a_store_there_is_still_a_trace_id(url: str) -> None:
    telemetry.setup("platform", url="none:")
    with telemetry.tracer().start_as_current_span("work"):
        assert len(telemetry.current_trace_id()) == 32


def test_logs_say_where_they_come_from(lines: Callable[[], list[dict[str, Any]]]) -> None:
    log = structlog.get_logger()
    with telemetry.tracer().start_as_current_span("work", attributes={telemetry.WORKSPACE: "acme"}), telemetry.as_service("data"):
        trace_id = telemetry.current_trace_id()
        log.info("job_started", job_id="job-1")
        logging.getLogger("some.library").warning("hello %s", "world")
    log.debug("not_seen")
    try:
        raise RuntimeError("Bearer abcdefghijklmnop")
    except RuntimeError:
        log.exception("job_failed")
    first, second, third = lines()
    assert first["event"] == "job_started" and first["level"] == "info" and first["timestamp"].endswith("Z")
    assert (first["trace_id"], first["workspace"], first["service"]) == (trace_id, "acme", "platform")
    assert (second["event"], second["logger"], second["trace_id"]) == ("hello world", "some.library", trace_id)
    assert "RuntimeError" in third["exception"] and "abcdefgh" not in third["exception"]
    assert "trace_id" not in third


def test_secrets_are_hidden(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.get_logger().info(
        "called",
        api_key="sk-123",
        headers={"Authorization": "Bearer xyz", "accept": "*/*"},
        url="redis://:hunter22@localhost:6379/0",
        words="the key lk_live_0123456789abcdef0123456789 was used",
        page_token="bmV4dA",
        tokens=12,
    )
    logging.getLogger("x").warning("Authorization: Bearer %s", "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln")
    first, second = lines()
    assert first["api_key"] == first["headers"]["Authorization"] == HIDDEN
    assert (first["headers"]["accept"], first["page_token"], first["tokens"]) == ("*/*", "bmV4dA", 12)
    assert first["url"] == f"redis://:{HIDDEN}@localhost:6379/0"
    assert first["words"] == f"the key {HIDDEN} was used"
    assert "eyJ" not in second["event"]


def test_what_is_no_secret_stays() -> None:
    event = {
        "key": "job-0192",
        "dataset": "wdbc@2",
        "digest": "sha256:" + "0" * 64,
        "key_id": "key-0192aabbccddeeff00112233",
        "n": [1, {"a": None}],
    }
    assert redacted(event) == event


def test_a_log_that_nobody_reads_does_no_harm(url: str) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    configure_logs("info", "json", Full())
    structlog.get_logger().info("still_here")


def test_what_json_cannot_say_is_logged_all_the_same(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.get_logger().info("odd", path="/v1/\udc80", number=2**70, api_key="\udc80secret")
    (line,) = lines()
    assert (line["event"], line["path"], line["number"], line["api_key"]) == ("odd", "/v1/\udc80", 2**70, HIDDEN)


class Kept:
    """A sink of log lines that remembers them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def write(self, batch: Sequence[Line]) -> None:
        self.lines += batch

    def close(self) -> None:
        pass


def test_lines_go_to_a_sink_too_but_not_those_of_what_carries_them(lines: Callable[[], list[dict[str, Any]]]) -> None:
    kept = Kept()
    send_logs(kept)
    with telemetry.tracer().start_as_current_span("work"):
        trace_id = telemetry.current_trace_id()
        structlog.get_logger().info("job_started", api_key="sk-123", words="x" * 100_000)
    logging.getLogger("opentelemetry.exporter.otlp").critical("cannot be reached")
    logging.getLogger("urllib3.connectionpool").warning("retrying")
    stop_logs()
    assert len(lines()) == 3
    (line,) = kept.lines
    assert (line.event["event"], line.event["api_key"], len(line.event["words"])) == ("job_started", HIDDEN, 16_384)
    assert trace.format_trace_id(line.span.trace_id) == trace_id


def test_a_sink_that_fails_is_mentioned_once_a_minute(lines: Callable[[], list[dict[str, Any]]]) -> None:
    class Away(Kept):
        def write(self, batch: Sequence[Line]) -> None:
            raise OSError("away")

    send_logs(Away())
    for n in range(5):
        structlog.get_logger().info("work", n=n)
        _lines.flush()
    stop_logs()
    assert [line["event"] for line in lines()].count("logs_dropped") == 1
    assert _lines.dropped >= 5


async def test_only_a_share_of_the_traces_is_kept_and_lines_lack_nothing(url: str, lines: Callable[[], list[dict[str, Any]]]) -> None:
    start_tracing("platform", SqliteSink(Path(url.removeprefix("sqlite://"))), share=0.0)
    traceparents = []
    for parent in ({}, {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}):
        with telemetry.tracer().start_as_current_span("work", telemetry.extract(parent), attributes={telemetry.WORKSPACE: "acme"}):
            structlog.get_logger().info("job_started")
            traceparents.append(telemetry.inject()["traceparent"])
    telemetry.record_span({"name": "epoch", "start_ns": time.time_ns(), "end_ns": time.time_ns(), "traceparent": traceparents[0]})
    dropped, kept = (line["trace_id"] for line in lines())
    assert [line["workspace"] for line in lines()] == ["acme", "acme"]
    assert [int(traceparent[-2:], 16) & 1 for traceparent in traceparents] == [0, 1]
    assert [span.name for span in await spans(url, kept)] == ["work"]
    assert await spans(url, dropped) == []
    with pytest.raises(ValueError, match="must be a share between 0 and 1"):
        telemetry.setup("platform", sample=1.5)


def test_setting_up_is_cheap() -> None:
    code = """
import resource, time
import structlog, opentelemetry.propagate
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
from libs import telemetry
telemetry.setup("x")
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    seconds, kib = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(seconds) < 2 and float(kib) < 40_000
