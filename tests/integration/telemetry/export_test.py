"""What goes to a collector: all of it, without secrets; and where it is away, nobody waits and nothing grows."""

import asyncio
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind

from libs import telemetry
from libs.telemetry.logs import _lines
from libs.telemetry.redaction import HIDDEN
from libs.telemetry.tracing import _pipeline
from tests.collector import Collector
from tests.integration.telemetry.receiver import Receiver
from tests.platform import free_port

pytestmark = pytest.mark.usefixtures("quiet")

_things = telemetry.gauge("lepton_test_exported", "Things.", ("state",))
SECRETS = ("hunter22", "abcdefghijklmnop", "lk_live_0123456789abcdef0123456789")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


async def test_two_processes_and_three_services_make_one_trace(collector: Collector) -> None:
    telemetry.setup("gateway", url=collector.telemetry_url)
    code = """
import sys
from opentelemetry import trace
from libs import telemetry
telemetry.setup("platform", url=sys.argv[1])
tracer, parent = telemetry.tracer(), telemetry.extract({"traceparent": sys.argv[2]})
answer = {"rpc.service": "lepton.training.v1.TrainingService"}
with tracer.start_as_current_span("CreateTrainingJob", parent, trace.SpanKind.SERVER, answer) as span:
    span.set_attribute(telemetry.WORKSPACE, "acme")
    with trace.get_tracer("accounts").start_as_current_span("handle", kind=trace.SpanKind.CONSUMER):
        pass
telemetry.shutdown()
"""
    with telemetry.tracer().start_as_current_span("POST /v1/training-jobs", kind=SpanKind.SERVER):
        trace_id, traceparent = telemetry.current_trace_id(), telemetry.inject()["traceparent"]
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, collector.telemetry_url, traceparent)
        assert await process.wait() == 0
    telemetry.flush()
    store = telemetry.open_trace_store(collector.traces_url)
    for _ in range(200):
        spans = {span.name: span for span in await store.spans(trace_id)}
        if len(spans) == 3:
            break
        await asyncio.sleep(0.1)
    assert {name: span.service for name, span in spans.items()} == {
        "POST /v1/training-jobs": "gateway",
        "CreateTrainingJob": "training",
        "handle": "accounts",
    }
    assert spans["CreateTrainingJob"].parent_id == spans["POST /v1/training-jobs"].span_id
    assert spans["handle"].parent_id == spans["CreateTrainingJob"].span_id
    assert spans["handle"].attributes == {telemetry.WORKSPACE: "acme"}


def test_the_collector_takes_all_three_signals(collector: Collector) -> None:
    telemetry.setup("data", url=collector.telemetry_url, level="warning")
    _things.show({("ready",): 1})
    with telemetry.tracer().start_as_current_span("work"):
        structlog.get_logger().warning("said")
    telemetry.shutdown()
    wanted = ("Metrics", "Logs")
    until = time.monotonic() + 20
    while not all(f'"otelcol.signal": "{signal.lower()}"' in (output := collector.output()) for signal in wanted):
        assert time.monotonic() < until, output
        time.sleep(0.2)


def test_secrets_go_nowhere(receiver: Receiver) -> None:
    telemetry.setup("data", url=receiver.url)
    log, tracer = structlog.get_logger(), telemetry.tracer()
    attributes = {"authorization": SECRETS[1], "url": f"redis://:{SECRETS[0]}@localhost:6379/0"}
    with pytest.raises(RuntimeError), tracer.start_as_current_span("call", attributes=attributes) as span:
        span.add_event("said", {"words": f"Bearer {SECRETS[1]}"})
        log.info("called", api_key=SECRETS[2], headers={"authorization": f"Bearer {SECRETS[1]}"}, odd=Odd())
        logging.getLogger("some.library").warning("the key %s", SECRETS[2])
        raise RuntimeError(f"the key {SECRETS[2]} is wrong")
    telemetry.shutdown()
    sent = b"".join(receiver.bodies["/v1/traces"] + receiver.bodies["/v1/logs"])
    assert b"called" in sent and HIDDEN.encode() in sent
    for secret in SECRETS:
        assert secret.encode() not in sent


def test_lines_carry_their_trace_and_their_service(receiver: Receiver) -> None:
    telemetry.setup("platform", url=receiver.url)
    with telemetry.tracer().start_as_current_span("work", attributes={telemetry.WORKSPACE: "acme", telemetry.SERVICE: "training"}) as span:
        context = span.get_span_context()
        structlog.get_logger().warning("job_failed", job_id="job-1", steps=[1, 2], meta={"code": "x"}, big=2**70, odd=Odd())
    structlog.get_logger().info("half a character: \udc80")
    telemetry.shutdown()
    found = [entry for group in groups(receiver, "/v1/logs", ExportLogsServiceRequest, "resource_logs") for entry in records(group)]
    inside, outside = found
    resource, record = inside
    assert (resource["service.name"], record.severity_text, record.body.string_value) == ("training", "warning", "job_failed")
    assert (record.trace_id.hex(), record.span_id.hex()) == (
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
    )
    fields = {each.key: each.value for each in record.attributes}
    assert (fields["job_id"].string_value, fields["workspace"].string_value) == ("job-1", "acme")
    assert [each.int_value for each in fields["steps"].array_value.values] == [1, 2]
    assert (fields["big"].string_value, fields["odd"].string_value) == (str(2**70), "<odd>")
    assert abs(record.time_unix_nano - time.time_ns()) < 60e9
    assert (outside[0]["service.name"], outside[1].trace_id, outside[1].body.string_value) == ("platform", b"", "half a character: ?")


def test_each_service_of_a_process_is_a_resource(receiver: Receiver) -> None:
    telemetry.setup("platform", url=receiver.url)
    for service in ("data", "training", "data"):
        with telemetry.as_service(service), telemetry.tracer().start_as_current_span("work"):
            pass
    telemetry.shutdown()
    found = {}
    for group in groups(receiver, "/v1/traces", ExportTraceServiceRequest, "resource_spans"):
        resource = attributes_of(group.resource)
        found[resource["service.name"]] = found.get(resource["service.name"], 0) + sum(len(scope.spans) for scope in group.scope_spans)
        assert ":" in resource["service.instance.id"] and resource["service.version"]
    assert found == {"data": 2, "training": 1}


def test_metrics_are_sent_at_the_latest_when_it_ends(receiver: Receiver) -> None:
    telemetry.setup("compute", url=receiver.url)
    _things.show({("ready",): 3})
    telemetry.shutdown()
    (group,) = groups(receiver, "/v1/metrics", ExportMetricsServiceRequest, "resource_metrics")
    assert attributes_of(group.resource)["service.name"] == "compute"
    names = {metric.name: MessageToDict(metric) for scope in group.scope_metrics for metric in scope.metrics}
    (point,) = names["lepton_test_exported"]["gauge"]["dataPoints"]
    assert (point["asDouble"] if "asDouble" in point else float(point["asInt"])) == 3


def away() -> str:
    return f"otlp+http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("kind", ["refusing", "hanging", "failing"])
def test_work_does_not_wait_for_a_collector_that_is_away(kind: str, receiver: Receiver) -> None:
    receiver.hangs, receiver.status = kind == "hanging", 500 if kind == "failing" else 200

    def measured(url: str) -> float:
        telemetry.setup("data", url=url)
        costs = []
        for _ in range(3000):
            started = time.thread_time_ns()
            with telemetry.tracer().start_as_current_span("work", attributes={"rows": 5}):
                pass
            costs.append(time.thread_time_ns() - started)
        return statistics.median(costs) / 1000

    without, with_it = measured("none:"), measured(away() if kind == "refusing" else receiver.url)
    print(f"{kind}: {without:.1f} us without, {with_it:.1f} us with")
    started = time.monotonic()
    with telemetry.tracer().start_as_current_span("one more"):
        pass
    assert time.monotonic() - started < 0.5
    assert with_it < without + 200
    started = time.monotonic()
    telemetry.shutdown()
    assert time.monotonic() - started < 10


def test_nothing_grows_while_the_collector_is_away(quiet_stderr: None) -> None:
    telemetry.setup("data", url=away())
    log = structlog.get_logger()
    spans_before, lines_before = _pipeline.spans.dropped, _lines.dropped
    for n in range(20_000):
        telemetry.tracer().start_span("work").end()
        if n % 2:
            log.info("work", n=n)
    assert len(_pipeline.spans._queue) <= 8192
    assert len(_lines._queue) <= 4096
    assert _pipeline.spans.dropped - spans_before >= 20_000 - 8192 - 1024
    assert _lines.dropped - lines_before >= 10_000 - 4096 - 1024
    telemetry.shutdown()


def test_the_log_says_why_once(receiver: Receiver, capfd: pytest.CaptureFixture[str]) -> None:
    receiver.status = 401
    telemetry.setup("data", url=receiver.url, style="json")
    for _ in range(3):
        with telemetry.tracer().start_as_current_span("work"):
            pass
        telemetry.flush()
    telemetry.shutdown()
    lines = [orjson.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"] == "spans_dropped"]
    assert "code: 401, reason: Unauthorized" in line["error"]
    # Its SDK may say something of its own about other tests' processors.
    assert not [line for line in lines if str(line.get("logger", "")).startswith("opentelemetry.exporter")]


def test_what_was_kept_while_it_was_away_arrives(receiver: Receiver, quiet_stderr: None) -> None:
    receiver.status = 503
    telemetry.setup("data", url=receiver.url)
    with telemetry.tracer().start_as_current_span("work"):
        pass
    time.sleep(0.5)
    receiver.status = 200
    until = time.monotonic() + 10
    while not receiver.accepted["/v1/traces"]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_exporters_words_do_not_feed_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    """At the level where every library says all it does."""
    code = """
import sys, time
from libs import telemetry
telemetry.setup("data", url=sys.argv[1], level="debug", style="json")
import structlog
structlog.get_logger().info("once")
time.sleep(3)
telemetry.shutdown()
"""
    with Receiver() as receiver:
        subprocess.run([sys.executable, "-c", code, receiver.url], check=True)
        sent = [record for group in groups(receiver, "/v1/logs", ExportLogsServiceRequest, "resource_logs") for record in records(group)]
    assert [record.body.string_value for _, record in sent if record.body.string_value == "once"] == ["once"]
    assert len(sent) < 5
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) < 20, lines
    assert {orjson.loads(line)["event"] for line in lines} >= {"once"}


@pytest.fixture
def quiet_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ten thousand lines are for nobody."""
    with open("/dev/null", "w") as nothing:
        monkeypatch.setattr(sys, "stderr", nothing)
        yield


class Odd:
    """Something that no record holds."""

    def __repr__(self) -> str:
        return "<odd>"


def groups(receiver: Receiver, path: str, message: Callable[[], Any], field: str) -> list[Any]:
    found = []
    for body in receiver.bodies[path]:
        request = message()
        request.ParseFromString(body)
        found += getattr(request, field)
    return found


def records(group: Any) -> list[tuple[dict[str, str], Any]]:
    return [(attributes_of(group.resource), record) for scope in group.scope_logs for record in scope.log_records]


def attributes_of(resource: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in resource.attributes}
