"""The gRPC face of the service."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from lepton.training.v1 import job_pb2, model_pb2
from lepton.training.v1 import training_service_pb2 as pb
from lepton.training.v1.training_service_pb2_grpc import TrainingServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import Invalid, Violation
from libs.rpc import current_call
from libs.service import Edge
from libs.storage import ArtifactStore
from services.training import repository, wire
from services.training.domain.states import State
from services.training.handlers import jobs, models, uploads
from services.training.handlers.admission import Peers, admit
from services.training.handlers.quota import giving_back, reserve_job, reserve_storage, settle_reservation
from services.training.handlers.uploads import Unpacking
from services.training.pulse import Pulse
from services.training.reconciler import Reconciler

WATCH_BATCH = 500
METRICS_PAGE = 1000


class TrainingServicer(Edge, TrainingServiceServicer):
    """Every method sees the caller's workspace alone."""

    def __init__(
        self,
        database: Database,
        peers: Peers,
        reconciler: Reconciler,
        pulse: Pulse,
        store: ArtifactStore,
        model_image: Mapping[str, str],
    ) -> None:
        super().__init__(database)
        self._peers, self._reconciler, self._pulse = peers, reconciler, pulse
        self._unpacking, self._runtime = Unpacking(store, model_image), wire.runtime_message(model_image)

    async def CreateTrainingJob(self, request: pb.CreateTrainingJobRequest, context: Any) -> job_pb2.TrainingJob:
        if current_call().idempotency_key:
            async with self.unit(request):
                pass  # Was it answered before? Then nothing is asked or reserved again.
        job = await admit(self.database, self._peers, self.workspace, request)
        async with self._giving_back(job.id):
            await reserve_job(self._peers, job)
            async with self.unit(request) as unit:
                await settle_reservation(unit.session, job.workspace, job.id)
                await jobs.create_training_job(unit, job)
                unit.after_commit(self._reconciler.wake)
                return await unit.reply(wire.job_message(job))

    async def GetTrainingJob(self, request: pb.GetTrainingJobRequest, context: Any) -> job_pb2.TrainingJob:
        async with self.read() as session:
            return wire.job_message(await repository.get_job(session, self.workspace, request.id))

    async def ListTrainingJobs(self, request: pb.ListTrainingJobsRequest, context: Any) -> pb.ListTrainingJobsResponse:
        limit, before = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            state = wire.state_name(request.state)
            found = await repository.list_jobs(session, self.workspace, before=before, limit=limit + 1, state=state)
        return pb.ListTrainingJobsResponse(
            training_jobs=[wire.job_message(job) for job in found[:limit]],
            next_page_token=page_token(found[limit - 1].id) if len(found) > limit else "",
        )

    async def CancelTrainingJob(self, request: pb.CancelTrainingJobRequest, context: Any) -> job_pb2.TrainingJob:
        async with self.unit(request) as unit:
            job = await jobs.cancel_training_job(unit, workspace=self.workspace, job_id=request.id)
            unit.after_commit(self._reconciler.wake)
            return await unit.reply(wire.job_message(job))

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Any) -> pb.ListMetricsResponse:
        found, token = await self._page(request, "metric", request.page_size or METRICS_PAGE, request.name)
        return pb.ListMetricsResponse(metrics=[job_pb2.MetricPoint.FromString(m) for m in found], next_page_token=token)

    async def ListLogs(self, request: pb.ListLogsRequest, context: Any) -> pb.ListLogsResponse:
        found, token = await self._page(request, "log", page_size(request.page_size))
        return pb.ListLogsResponse(logs=[job_pb2.LogLine.FromString(m) for m in found], next_page_token=token)

    async def _page(self, request: Any, kind: str, limit: int, name: str = "") -> tuple[list[bytes], str]:
        after = _position(start_after(request.page_token) or "", "page_token")
        async with self.read() as session:
            await repository.get_job(session, self.workspace, request.id)
            found = await repository.events_after(session, self.workspace, request.id, after, limit=limit + 1, kind=kind, name=name)
        token = page_token(str(found[limit - 1].number)) if len(found) > limit else ""
        return [event.message for event in found[:limit]], token

    async def WatchTrainingJob(self, request: pb.WatchTrainingJobRequest, context: Any) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        workspace, position = self.workspace, _position(request.after, "after")
        shown: object = None
        with self._pulse.watching(request.id) as changed:
            while not self._pulse.stopped:
                changed.clear()
                async with self.read() as session:
                    job = await repository.get_job(session, workspace, request.id)
                    events = await repository.events_after(session, workspace, request.id, position, limit=WATCH_BATCH)
                for event in events:
                    position = event.number
                    yield wire.watch_message(event.number, event.kind, event.message)
                if len(events) == WATCH_BATCH:
                    continue
                if State(job.state).ended and position >= job.last_event:
                    return
                if (standing := (job.progress, job.reason)) != shown and not State(job.state).ended:
                    # Not kept, therefore without a place of its own to resume from.
                    shown = standing
                    yield pb.WatchTrainingJobResponse(event_id=str(position), job=wire.job_message(job))
                await changed.wait()

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        limit, after = page_size(request.page_size), start_after(request.page_token)
        async with self.read() as session:
            found = await repository.list_models(session, self.workspace, after=after, limit=limit + 1)
        return pb.ListModelsResponse(
            models=[wire.model_message(model) for model in found[:limit]],
            next_page_token=page_token(found[limit - 1].name) if len(found) > limit else "",
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> model_pb2.Model:
        async with self.read() as session:
            return wire.model_message(await repository.get_model(session, self.workspace, request.name))

    async def ListModelVersions(self, request: pb.ListModelVersionsRequest, context: Any) -> pb.ListModelVersionsResponse:
        limit = page_size(request.page_size)
        before = _position(start_after(request.page_token) or "", "page_token") or None
        async with self.read() as session:
            await repository.get_model(session, self.workspace, request.name)
            found = await repository.list_model_versions(session, self.workspace, request.name, before=before, limit=limit + 1)
        return pb.ListModelVersionsResponse(
            model_versions=[wire.version_message(version) for version in found[:limit]],
            next_page_token=page_token(str(found[limit - 1].number)) if len(found) > limit else "",
        )

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> model_pb2.ModelVersion:
        async with self.read() as session:
            found = await repository.get_model_version(session, self.workspace, request.name, request.number)
            return wire.version_message(found)

    async def RegisterModelVersion(self, request: pb.RegisterModelVersionRequest, context: Any) -> model_pb2.ModelVersion:
        if current_call().idempotency_key:
            async with self.unit(request):
                pass  # Was it answered before? Then nothing is unpacked again.
        where, upload = {"workspace": self.workspace, "name": request.name}, uploads.new_upload()
        async with self._unpacking.unpacked(request.content.digest) as package, self._giving_back(upload):
            # What it unpacks to counts, and none of it is stored before there is room.
            await reserve_storage(self._peers, self.workspace, upload, package.size)
            files = await self._unpacking.kept(package)
            async with self.unit(request) as unit:
                await settle_reservation(unit.session, self.workspace, upload)
                found = await uploads.register_upload(unit, **where, upload=upload, package=package.said, files=files)
                return await unit.reply(found)

    def _giving_back(self, made: str) -> AbstractAsyncContextManager[None]:
        return giving_back(self.database, self._peers, self.workspace, made)

    async def GetModelRuntime(self, request: pb.GetModelRuntimeRequest, context: Any) -> model_pb2.ModelRuntime:
        return self._runtime

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:
        # Who deletes an endpoint and then its model need not wait for the event between them.
        gone = await models.endpoints_gone(self.database, self._peers.deployment, workspace=self.workspace, name=request.name)
        async with self.unit(request) as unit:
            await models.delete_model(unit, workspace=self.workspace, name=request.name, gone=gone)
            return await unit.reply(pb.DeleteModelResponse())


def _position(text: str, at: str) -> int:
    """The number of an event or version; 0 for none."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid.of([Violation(at, "must be as an earlier answer gave it")])
    return int(text)
