"""What happens to a training job, as server-sent events (HTML standard, section 9.2)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lepton.training.v1 import job_pb2, training_service_pb2
from libs.errors import AppError
from libs.rpc import Client, validate
from libs.rpc.json_codec import dump, parse
from libs.rpc.names import descriptor_of
from libs.rpc.schema import Schemas
from services.gateway import documents
from services.gateway.messages import query_values
from services.gateway.operations import Operation
from services.gateway.problems import Problems, encode

HEARTBEAT_SECONDS = 10.0
_RECONNECT = b"retry: 1000\n\n"
_HEARTBEAT = b": heartbeat\n\n"
_log = structlog.get_logger(__name__)


class TrainingJobs:
    """Handler of the one route. Streams end when `closing` is set, so that a stopping server need not wait for them."""

    def __init__(self, training: Client, problems: Problems, closing: asyncio.Event, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._training = training
        self._problems = problems
        self._closing = closing
        self._heartbeat_seconds = heartbeat_seconds

    def operations(self) -> list[Operation]:
        """It."""
        return [Operation("GET", "/v1/training-jobs/{id}/events", self.watch, _describe)]

    async def watch(self, request: Request) -> Response:
        """A stream that goes on after Last-Event-ID."""
        query_values(request, {})
        job = parse(training_service_pb2.GetTrainingJobRequest, {"id": request.path_params["id"]})
        watch = parse(training_service_pb2.WatchTrainingJobRequest, {"id": job.id, "after": request.headers.get("last-event-id", "")})
        validate(watch)
        # A job that is not there is answered as such, not by a stream that breaks.
        await self._training.GetTrainingJob(job)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(request, watch), headers=headers, media_type="text/event-stream")

    async def _events(self, request: Request, watch: training_service_pb2.WatchTrainingJobRequest) -> AsyncIterator[bytes]:
        yield _RECONNECT
        events = self._training.WatchTrainingJob(watch)
        closing = asyncio.ensure_future(self._closing.wait())
        following: asyncio.Future[Any] = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                await asyncio.wait({following, closing}, timeout=self._heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    return
                if not following.done():
                    yield _HEARTBEAT
                    continue
                event = following.result()
                if event is None:
                    return
                yield _encode(event)
                following = asyncio.ensure_future(anext(events, None))
        except AppError as error:
            # The client comes back by itself and goes on where it was.
            _log.info("watch_broken", job_id=watch.id, code=error.code)
            yield b"event: error\ndata: " + encode(self._problems.document(error, request.url.path)) + b"\n\n"
        finally:
            closing.cancel()
            following.cancel()
            with suppress(asyncio.CancelledError, AppError):
                await following
            await events.aclose()


def _encode(event: training_service_pb2.WatchTrainingJobResponse) -> bytes:
    kind = event.WhichOneof("event") or "message"
    identifier = event.event_id.replace("\n", " ").replace("\r", " ")
    data = encode(dump(getattr(event, kind))) if kind != "message" else b"{}"
    return f"id: {identifier}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"


def _describe(schemas: Schemas) -> dict[str, Any]:
    for message in (job_pb2.TrainingJob, job_pb2.MetricPoint, job_pb2.LogLine):
        schemas.received(descriptor_of(message))
    return documents.operation(
        "training-jobs",
        "WatchTrainingJob",
        "Watch training job",
        description="Server-sent events from the job's beginning, or after Last-Event-ID, until its last state: `job` with a TrainingJob, "
        "`metric` with a MetricPoint, `log` with a LogLine. A comment every 10 s keeps the connection alive.",
        parameters=[
            documents.parameter("path", "id", documents.NAME),
            documents.parameter("header", "Last-Event-ID", {"type": "string", "maxLength": 100}, "Continue after this event."),
        ],
        answers={"200": documents.answer("The events.", "text/event-stream", {})},
    )
