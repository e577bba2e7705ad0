"""One request, one trace: a span here, one a call, and one at the service that answers, each under the one before."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from services.gateway.conftest import World


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter
    processor.shutdown()


def shape(spans: tuple[ReadableSpan, ...]) -> set[tuple[str, SpanKind, str]]:
    names = {span.context.span_id: span.name for span in spans if span.context}
    return {(span.name, span.kind, names.get(span.parent.span_id, "?") if span.parent else "") for span in spans}


async def test_the_tree_of_a_request(world: World, exporter: InMemorySpanExporter) -> None:
    response = await world.client.get("/v1/datasets/wdbc")
    spans = exporter.get_finished_spans()
    authenticate = "lepton.accounts.v1.AccountsService/Authenticate"
    get = "lepton.data.v1.DataService/GetDataset"
    root = "GET /v1/datasets/{name}"
    assert shape(spans) == {
        (root, SpanKind.SERVER, ""),
        (authenticate, SpanKind.CLIENT, root),
        (authenticate, SpanKind.SERVER, authenticate),
        (get, SpanKind.CLIENT, root),
        (get, SpanKind.SERVER, get),
    }
    [top] = [span for span in spans if span.parent is None]
    assert {span.context.trace_id for span in spans if span.context} == {int(response.headers["x-lepton-trace-id"], 16)}
    attributes = top.attributes or {}
    assert (attributes["lepton.workspace"], attributes["service.name"]) == ("acme", "gateway")
    assert "owner-key" not in str([dict(span.attributes or {}) for span in spans])


async def test_health_is_not_traced(world: World, exporter: InMemorySpanExporter) -> None:
    assert "x-lepton-trace-id" not in (await world.client.get("/healthz")).headers
    assert exporter.get_finished_spans() == ()
