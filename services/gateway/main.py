"""Puts the gateway together from its settings, and runs it: `python -m services.gateway.main`."""

import asyncio
import uuid

import uvloop
from fastapi import FastAPI

from libs.lifecycle import Lifecycle
from libs.process import run
from libs.storage import ArtifactStore, open_store
from libs.telemetry import TraceStore, open_trace_store
from services.gateway.app import build_app
from services.gateway.auth import Authenticator
from services.gateway.http_server import HttpServer
from services.gateway.inference import Router
from services.gateway.limits import RateLimits
from services.gateway.operations import Operation
from services.gateway.peers import SERVICES, Peers, connect
from services.gateway.predictions import Predictions
from services.gateway.problems import Problems
from services.gateway.quota import PredictionQuota
from services.gateway.routes.datasets import Datasets
from services.gateway.routes.endpoints import Endpoints
from services.gateway.routes.health import Health
from services.gateway.routes.models import Models
from services.gateway.routes.open_inference import OpenInference
from services.gateway.routes.reference import Reference
from services.gateway.routes.traces import Elsewhere, Traces
from services.gateway.routes.training_jobs import TrainingJobs
from services.gateway.routes.uploads import Uploads
from services.gateway.settings import GatewaySettings
from services.gateway.transcode import operations_of
from services.gateway.uploads import UploadTokens

# For what has been asked to be answered: a prediction may wait for a replica.
GRACE_SECONDS, SLACK_SECONDS = 15, 5.0


class Gateway:
    """A lifecycle component. `traces` and the stores are given where another process part keeps them.

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
        quota = PredictionQuota(peers.accounts, uuid.uuid4().hex[:12], settings.prediction_block)
        predictions = Predictions(peers, Router(peers.deployment, seconds=settings.predict_seconds), quota, limits)
        draining, closing = asyncio.Event(), asyncio.Event()
        datasets = datasets or open_store(settings.storage, "datasets")
        tokens = UploadTokens(settings.identity)
        operations = [
            # Routes are tried in order: first those that are asked most often.
            *Endpoints(predictions).operations(),
            *OpenInference(predictions).operations(),
            *_transcoded(peers, authenticator, settings),
            *Datasets(peers.data, datasets, tokens, limits, problems).operations(),
            *Uploads(peers.accounts, datasets, tokens, limits).operations(),
            *Models(peers.training, models or open_store(settings.storage, "models"), problems).operations(),
            *TrainingJobs(peers.training, problems, closing).operations(),
            *Traces(traces or trace_store(settings)).operations(),
            *Health(peers, draining).operations(),
        ]
        operations += Reference(operations).operations()
        self.app: FastAPI = build_app(operations, authenticator, RateLimits(limits), problems)
        self._server = HttpServer(
            self.app,
            settings.host,
            settings.port,
            limits,
            problem_base=settings.problem_base,
            draining=draining,
            closing=closing,
            drain_seconds=settings.drain_seconds,
            grace_seconds=GRACE_SECONDS,
        )
        self._parts = Lifecycle([peers, predictions, self._server], grace_seconds=settings.drain_seconds + GRACE_SECONDS + SLACK_SECONDS)

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


def trace_store(settings: GatewaySettings) -> TraceStore:
    """What the route of traces reads. Raises ValueError where a URL names nothing that can be read."""
    if settings.telemetry_url.startswith("otlp+") and not settings.traces_url:
        return Elsewhere()
    return open_trace_store(settings.traces_url or settings.telemetry_url)


def _transcoded(peers: Peers, authenticator: Authenticator, settings: GatewaySettings) -> list[Operation]:
    # What these change must not be remembered otherwise.
    forget = dict.fromkeys(("DeleteApiKey", "DeleteMember", "SetMember"), authenticator.forget)
    clients = peers.by_name()
    return [each for name, service in SERVICES.items() for each in operations_of(service, clients[name], settings.limits, forget)]


if __name__ == "__main__":
    run("gateway", GatewaySettings(), Gateway, loop_factory=uvloop.new_event_loop)
