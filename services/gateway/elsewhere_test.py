"""Which trace store the settings mean."""

import pytest

from libs.errors import AppError
from libs.telemetry import SqliteTraceStore
from libs.telemetry.jaeger import JaegerTraceStore
from services.gateway.main import trace_store
from services.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"telemetry_url": "sqlite:///tmp/traces.db"}, SqliteTraceStore),
        ({"telemetry_url": "otlp+http://collector:4318", "traces_url": "jaeger+http://jaeger:16686"}, JaegerTraceStore),
        ({"telemetry_url": "none:", "traces_url": "sqlite:///tmp/traces.db"}, SqliteTraceStore),
    ],
)
def test_traces_are_read_where_the_settings_say(settings: dict[str, str], kind: type) -> None:
    assert isinstance(trace_store(GatewaySettings(**settings)), kind)


@pytest.mark.parametrize(("url", "why"), [("otlp+http://collector:4318", "kept by the collector"), ("none:", "keeps no traces")])
async def test_where_no_trace_can_be_read_it_is_said_how_one_could(url: str, why: str) -> None:
    with pytest.raises(AppError, match=f"{why}.* LEPTON_GATEWAY_TRACES_URL names a Jaeger") as refused:
        await trace_store(GatewaySettings(telemetry_url=url)).spans("a" * 32)
    assert refused.value.entry.http == 501


def test_what_cannot_be_read_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="must be none: or sqlite"):
        trace_store(GatewaySettings(traces_url="otlp+http://collector:4318"))
