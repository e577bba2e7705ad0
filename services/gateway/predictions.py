"""One prediction from quota to record: what every route that answers rows goes through."""

import time
from collections.abc import Awaitable, Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response

from lepton.deployment.v1 import deployment_service_pb2
from lepton.marketplace.v1 import marketplace_service_pb2
from libs.rpc import Call, acting, current_call
from libs.telemetry import counter, histogram
from services.gateway.cache import TtlCache
from services.gateway.inference import Answer, Router
from services.gateway.messages import read_body
from services.gateway.metering import GroupCommit
from services.gateway.peers import Peers
from services.gateway.problems import PROBLEM_JSON, from_document
from services.gateway.quota import PredictionQuota
from services.gateway.settings import Limits

INVOCATION_SECONDS = 1.0
_predictions = counter("lepton_predictions_total", "Rows that were answered and recorded.")
_duration = histogram("lepton_prediction_duration_seconds", "From a prediction's whole body to its recorded answer.")


class Predictions:
    """A lifecycle component: quota → replica → quota → record → answer."""

    def __init__(self, peers: Peers, router: Router, quota: PredictionQuota, limits: Limits) -> None:
        self.router = router
        self._peers = peers
        self._quota = quota
        self._limits = limits
        self._endpoints: GroupCommit[tuple[str, str]] = GroupCommit(self._record_predictions)
        self._subscriptions: GroupCommit[str] = GroupCommit(self._record_invocations)
        self._invocations: TtlCache[tuple[str, str], marketplace_service_pb2.ResolveInvocationResponse] = TtlCache(10_000)

    async def start(self) -> None:
        """Opens what it stands on."""
        await self.router.start()
        await self._quota.start()

    async def stop(self) -> None:
        """Records what was answered, then gives back what was not used."""
        for part in (self._endpoints, self._subscriptions, self._quota, self.router):
            await part.stop()

    async def predict(self, request: Request, endpoint: str, path: str) -> Answer:
        """By an endpoint of the caller's workspace; `path` is the replica's."""
        workspace = current_call().identity.workspace
        return await self._answer(request, workspace, endpoint, path, lambda rows: self._endpoints.record((workspace, endpoint), rows))

    async def invoke(self, request: Request, slug: str) -> Answer:
        """By the endpoint behind a listing that the caller's workspace subscribes to."""
        buyer = current_call().identity.workspace
        found = self._invocations.get((buyer, slug))
        if found is None:
            with acting(Call()):
                found = await self._peers.marketplace.ResolveInvocation(
                    marketplace_service_pb2.ResolveInvocationRequest(buyer=buyer, slug=slug)
                )
            self._invocations.put((buyer, slug), found, INVOCATION_SECONDS)
        subscription = found.subscription
        return await self._answer(
            request, found.publisher, found.endpoint, "/predict", lambda rows: self._subscriptions.record(subscription, rows)
        )

    async def _answer(self, request: Request, owner: str, endpoint: str, path: str, record: Callable[[int], Awaitable[None]]) -> Answer:
        payer = current_call().identity.workspace
        body = await read_body(request, self._limits.predict_bytes, self._limits.body_seconds)
        started = time.perf_counter()
        await self._quota.admit(payer)
        answer = await self.router.send(owner, endpoint, "POST", path, request.headers, body)
        if answer.rows:
            await self._quota.take(payer, answer.rows)
            await record(answer.rows)
            _predictions.add(answer.rows)
            _duration.record(time.perf_counter() - started)
        return answer

    async def _record_predictions(self, batch_id: str, uses: dict[tuple[str, str], tuple[int, int]]) -> None:
        records = [
            deployment_service_pb2.PredictionRecord(workspace=workspace, endpoint=endpoint, requests=requests, rows=rows)
            for (workspace, endpoint), (requests, rows) in uses.items()
        ]
        await self._peers.deployment.RecordPredictions(deployment_service_pb2.RecordPredictionsRequest(batch_id=batch_id, records=records))

    async def _record_invocations(self, batch_id: str, uses: dict[str, tuple[int, int]]) -> None:
        records = [
            marketplace_service_pb2.InvocationRecord(subscription=subscription, requests=requests, rows=rows)
            for subscription, (requests, rows) in uses.items()
        ]
        await self._peers.marketplace.RecordInvocations(
            marketplace_service_pb2.RecordInvocationsRequest(batch_id=batch_id, records=records)
        )


def relay(answer: Answer) -> Response:
    """The replica's answer as it is; raises AppError for a problem of it, so that it gets our type, instance and trace id."""
    if answer.headers.get("content-type", "").startswith(PROBLEM_JSON):
        try:
            document = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            document = None
        raise from_document(document, f"the replica answered {answer.status}")
    return Response(answer.body, answer.status, answer.headers)
