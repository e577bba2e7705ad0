"""Composition root of the gateway's two processes: `python -m services.gateway.main`, and the same with `control`."""

import asyncio
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from libs.lifecycle import Component, Lifecycle
from libs.process import run
from libs.storage import ArtifactStore, open_store
from libs.telemetry import TraceStore, open_trace_store
from services.gateway.app import build_app
from services.gateway.auth import Authentication, Authenticator
from services.gateway.http_server import HttpServer
from services.gateway.inference.app import Inference, split
from services.gateway.inference.forward import Forward
from services.gateway.inference.metering import Meter
from services.gateway.inference.quota import PredictionQuota
from services.gateway.inference.router import Router
from services.gateway.inference.rpc import RpcServer
from services.gateway.inference.traffic import Traffic
from services.gateway.intake import Intake
from services.gateway.limits import RateLimits
from services.gateway.operations import Operation
from services.gateway.peers import SERVICES, Peers, connect
from services.gateway.problems import Problems
from services.gateway.routes import inference
from services.gateway.routes.datasets import Datasets
from services.gateway.routes.health import Health
from services.gateway.routes.models import Models
from services.gateway.routes.openai import OpenAiModels
from services.gateway.routes.reference import Reference
from services.gateway.routes.traces import Elsewhere, Traces
from services.gateway.routes.training_jobs import TrainingJobs
from services.gateway.routes.uploads import Uploads
from services.gateway.settings import GatewaySettings
from services.gateway.tracing import Tracing
from services.gateway.transcode import operations_of
from services.gateway.uploads import UploadTokens

# For what has been asked to be answered: a prediction may wait for a replica.
GRACE_SECONDS, SLACK_SECONDS = 15, 5.0


class _Listening:
    """A lifecycle component: an application at an address, behind the parts that it stands on."""

    def __init__(
        self, app: ASGIApp, settings: GatewaySettings, parts: Sequence[Component], *, draining: asyncio.Event, closing: asyncio.Event
    ) -> None:
        self._server = HttpServer(app, settings, draining=draining, closing=closing, grace_seconds=GRACE_SECONDS)
        self._parts = Lifecycle([*parts, self._server], grace_seconds=settings.drain_seconds + GRACE_SECONDS + SLACK_SECONDS)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    async def start(self) -> None:
        """Listens; raises OSError in words when the port is taken."""
        await self._parts.start()

    async def stop(self) -> None:
        """Answers what has been asked, then ends."""
        await self._parts.stop()


class ControlPlane(_Listening):
    """A lifecycle component: the REST control plane. `traces` and the stores are given where another process part keeps them.

    `address` is the URL after start(); `app` the ASGI application.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        traces: TraceStore | None = None,
        datasets: ArtifactStore | None = None,
        models: ArtifactStore | None = None,
    ) -> None:
        limits = settings.limits
        problems = Problems(settings.problem_base)
        peers = connect(settings.peers, settings.identity.signer("gateway"), settings.tls)
        authenticator = Authenticator(peers.accounts)
        draining, closing = asyncio.Event(), asyncio.Event()
        datasets = datasets or open_store(settings.storage, "datasets")
        intake, tokens = Intake(peers.accounts, limits), UploadTokens(settings.identity)
        operations = [
            *OpenAiModels(peers.deployment).widen(_transcoded(peers, authenticator, settings)),
            *Datasets(peers.data, datasets, tokens, intake, limits, problems).operations(),
            *Uploads(intake, datasets, tokens, limits).operations(),
            *Models(peers.training, models or open_store(settings.storage, "models"), intake, limits, problems).operations(),
            *TrainingJobs(peers.training, problems, closing).operations(),
            *Traces(traces or trace_store(settings)).operations(),
            *Health(peers, draining).operations(),
            *inference.operations(),
        ]
        operations += Reference(operations).operations()
        self.app: FastAPI = build_app(operations, authenticator, RateLimits(limits), problems)
        super().__init__(self.app, settings, [peers], draining=draining, closing=closing)


class Gateway(_Listening):
    """A lifecycle component: the platform's public address. Answers inference itself, and has the control plane answer all else.

    Any number of these may run, on one port too (`share_port`); none knows of the others.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        limits, problems = settings.limits, Problems(settings.problem_base)
        peers = connect(settings.peers, settings.identity.signer("gateway"), settings.tls)
        traffic = Traffic(peers.deployment)
        quota = PredictionQuota(peers.accounts, uuid.uuid4().hex[:12], settings.prediction_block)
        router = Router(peers.deployment, traffic, seconds=settings.predict_seconds)
        inference = Inference(peers, router, quota, Meter(peers, Path(settings.spool_dir)), limits)
        forward = Forward(settings.control_url, problems)
        draining, closing = asyncio.Event(), asyncio.Event()
        guarded = Tracing(Authentication(inference, Authenticator(peers.accounts), RateLimits(limits), problems), problems)
        self._rpc = RpcServer(guarded, settings, closing)
        app = split(guarded, forward, draining)
        super().__init__(app, settings, [peers, traffic, inference, forward, self._rpc], draining=draining, closing=closing)

    @property
    def grpc_address(self) -> str:
        """Where it answers the inference protocol over gRPC, "host:port"."""
        return self._rpc.address


def trace_store(settings: GatewaySettings) -> TraceStore:
    """What the route of traces reads. Raises ValueError where a URL names nothing that can be read."""
    if not settings.traces_url:
        how = "LEPTON_GATEWAY_TRACES_URL names a Jaeger that has them"
        if settings.telemetry_url == "none:":
            return Elsewhere(
                f"this platform keeps no traces; for them to be shown, LEPTON_PLATFORM_TELEMETRY_URL names a collector and {how}"
            )
        if settings.telemetry_url.startswith("otlp+"):
            return Elsewhere(f"traces are kept by the collector; for them to be shown here, {how}")
    return open_trace_store(settings.traces_url or settings.telemetry_url)


def _transcoded(peers: Peers, authenticator: Authenticator, settings: GatewaySettings) -> list[Operation]:
    # What these change must not be remembered otherwise.
    forget = dict.fromkeys(("DeleteApiKey", "DeleteMember", "SetMember"), authenticator.forget)
    clients = peers.by_name()
    return [each for name, service in SERVICES.items() for each in operations_of(service, clients[name], settings.limits, forget)]


if __name__ == "__main__":
    run("gateway", GatewaySettings(), ControlPlane if sys.argv[1:] == ["control"] else Gateway, loop_factory=uvloop.new_event_loop)
