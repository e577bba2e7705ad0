"""The gRPC face of the service."""

import time
from collections.abc import Callable
from typing import Any

from lepton.data.v1 import data_service_pb2 as pb
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2_grpc import DataServiceServicer
from libs.db import Database, page_size, page_token, start_after
from libs.errors import Invalid, NotFound, Violation
from libs.rpc import Client, current_call
from libs.service import Edge
from libs.storage import ArtifactStore
from services.data import repository, wire
from services.data.domain import words
from services.data.domain.states import State
from services.data.handlers import datasets, making, versions
from services.data.handlers.making import Bench
from services.data.handlers.versions import Key, Source
from services.data.tables import INPUT, SPLIT, UPLOAD, Version

DEFAULT_PREVIEW_ROWS = 20


class DataServicer(Edge, DataServiceServicer):
    """Every method sees the caller's workspace alone. `hint(key)` tells the workers of a version that waits for one of them."""

    def __init__(self, database: Database, store: ArtifactStore, accounts: Client, bench: Bench, hint: Callable[[Key], Any]) -> None:
        super().__init__(database)
        self._store, self._accounts, self._bench, self._hint = store, accounts, bench, hint

    # Datasets

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        async with self.unit(request) as unit:
            row = await datasets.create_dataset(
                unit, workspace=self.workspace, name=request.name, description=request.description, now=time.time()
            )
            return await unit.reply(wire.dataset_message(row, 0))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        async with self.read() as session:
            row = await repository.find_dataset(session, self.workspace, request.name)
            if row is None:
                raise words.no_dataset(request.name, await repository.dataset_names(session, self.workspace))
            return wire.dataset_message(row, (await repository.latest_numbers(session, self.workspace, [row.name])).get(row.name, 0))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        size = page_size(request.page_size)
        async with self.read() as session:
            rows = await repository.list_datasets(session, self.workspace, after=start_after(request.page_token), limit=size + 1)
            latest = await repository.latest_numbers(session, self.workspace, [row.name for row in rows[:size]])
        token = page_token(rows[size - 1].name) if len(rows) > size else ""
        messages = [wire.dataset_message(row, latest.get(row.name, 0)) for row in rows[:size]]
        return pb.ListDatasetsResponse(datasets=messages, next_page_token=token)

    async def UpdateDataset(self, request: pb.UpdateDatasetRequest, context: Any) -> dataset_pb2.Dataset:
        description = request.description if request.HasField("description") else None
        async with self.unit(request) as unit:
            row = await datasets.update_dataset(unit, workspace=self.workspace, name=request.name, description=description)
            latest = await repository.latest_numbers(unit.session, self.workspace, [row.name])
            return await unit.reply(wire.dataset_message(row, latest.get(row.name, 0)))

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        async with self.unit(request) as unit:
            await datasets.delete_dataset(unit, workspace=self.workspace, name=request.name, now=time.time())
            return await unit.reply(pb.DeleteDatasetResponse())

    # Versions

    async def GetDatasetVersion(self, request: pb.GetDatasetVersionRequest, context: Any) -> dataset_pb2.DatasetVersion:
        async with self.read() as session:
            row = await versions.visible_version(session, workspace=self.workspace, dataset=request.name, number=request.number)
            return wire.version_message(row, await repository.splits(session, row))

    async def ListDatasetVersions(self, request: pb.ListDatasetVersionsRequest, context: Any) -> pb.ListDatasetVersionsResponse:
        size = page_size(request.page_size)
        async with self.read() as session:
            if await repository.find_dataset(session, self.workspace, request.name) is None:
                raise words.no_dataset(request.name, await repository.dataset_names(session, self.workspace))
            before = _number(request.page_token)
            rows = await repository.list_versions(session, self.workspace, request.name, before=before, limit=size + 1)
            files = await repository.files(session, rows[:size], [SPLIT])
        token = page_token(str(rows[size - 1].number)) if len(rows) > size else ""
        return pb.ListDatasetVersionsResponse(versions=[wire.version_message(row, files) for row in rows[:size]], next_page_token=token)

    async def PreviewDatasetVersion(self, request: pb.PreviewDatasetVersionRequest, context: Any) -> pb.PreviewDatasetVersionResponse:
        async with self.read() as session:
            row = await versions.ready_version(session, workspace=self.workspace, dataset=request.name, number=request.number)
            splits = await repository.splits(session, row)
        chosen = next((split for split in splits if split.name == (request.split or splits[0].name)), None)
        if chosen is None:
            raise words.no_split(request.split, [split.name for split in splits])
        rows = await self._bench.preview(chosen.digest, request.rows or DEFAULT_PREVIEW_ROWS)
        return pb.PreviewDatasetVersionResponse(columns=wire.column_messages(row.columns), rows=wire.row_messages(rows))

    async def GetProfile(self, request: pb.GetProfileRequest, context: Any) -> dataset_pb2.Profile:
        async with self.read() as session:
            row = await versions.ready_version(session, workspace=self.workspace, dataset=request.name, number=request.number)
            profile = await repository.find_profile(session, row)
        if profile is None:
            raise NotFound(f"version {row.dataset}@{row.number} has no profile")
        return dataset_pb2.Profile.FromString(profile.message)

    # Making

    async def IngestContent(self, request: pb.IngestContentRequest, context: Any) -> dataset_pb2.DatasetVersion:
        version = await self._found_again(request)
        if version is None:
            content = request.content
            size = await making.size_of_upload(self._store, content.digest)
            file_name = request.file_name.replace("\\", "/").rpartition("/")[2]
            source = Source(
                job={"kind": "ingest", "file_name": file_name},
                lineage=wire.upload_lineage(file_name, content.digest, size, content.media_type),
                files=[(UPLOAD, file_name, content.digest, size)],
            )
            version = await self._begin(request.name, source, request.wait_seconds)
        await self._confirm(version)
        return await self._answer(request, version, request.wait_seconds)

    async def CreateTransform(self, request: pb.CreateTransformRequest, context: Any) -> dataset_pb2.DatasetVersion:
        version = await self._found_again(request)
        if version is None:
            steps = wire.engine_steps(request.steps)
            output = request.output or request.name
            async with self.read() as session:
                made_of = await versions.ready_version(session, workspace=self.workspace, dataset=request.name, number=request.version)
                await versions.refuse_other_kind(session, workspace=self.workspace, dataset=output, kind=made_of.kind)
                splits = await repository.splits(session, made_of)
            await self._bench.check(made_of.columns, steps)
            source = Source(
                job={"kind": "transform", "columns": made_of.columns, "steps": steps},
                lineage=wire.transform_lineage(made_of, request.steps),
                files=[(INPUT, split.name, split.digest, split.size) for split in splits],
            )
            version = await self._begin(output, source, 0)
        await self._confirm(version)
        return await self._answer(request, version, 0)

    async def CreateDerivedDatasetVersion(self, request: pb.CreateDerivedDatasetVersionRequest, context: Any) -> dataset_pb2.DatasetVersion:
        version = await self._found_again(request)
        if version is None:
            columns = wire.engine_columns(request.columns)
            sizes = [await making.size_of_upload(self._store, part.digest) for part in request.parts]
            await self._bench.check(columns, [])
            source = Source(
                # No steps: the parts, one below the other, as one file a split.
                job={"kind": "transform", "columns": columns, "steps": []},
                lineage=wire.prediction_lineage(request),
                files=[(INPUT, part.path, part.digest, size) for part, size in zip(request.parts, sizes, strict=True)],
            )
            version = await self._begin(request.name, source, 0)
        await self._confirm(version)
        return await self._answer(request, version, 0)

    async def _found_again(self, request: Any) -> Version | None:
        """The version that the same request has made before it lost its answer. Raises Replay where the answer is remembered."""
        if not current_call().idempotency_key:
            return None
        async with self.unit(request) as unit:
            return await repository.find_version_of_request(unit.session, self.workspace, _request_key() or "")

    async def _begin(self, dataset: str, source: Source, wait_seconds: float) -> Version:
        now = time.time()
        async with self.database.unit() as unit:
            return await versions.begin_version(
                unit,
                workspace=self.workspace,
                dataset=dataset,
                source=source,
                request_key=_request_key(),
                awaited_until=now + wait_seconds if wait_seconds else 0.0,
                traceparent=making.traceparent(),
                now=now,
            )

    async def _confirm(self, version: Version) -> None:
        key = Key.of(version)
        if version.state == State.RESERVING:
            await making.reserve(self._accounts, self.database, version)
        async with self.database.unit() as unit:
            await versions.confirm_version(unit, key)
            unit.after_commit(lambda: self._hint(key))

    async def _answer(self, request: Any, version: Version, wait_seconds: float) -> dataset_pb2.DatasetVersion:
        """The version as it is after the wait. A refusal is raised; nothing of it stays behind."""
        key = Key.of(version)
        found = await making.outcome(self.database, key, time.time() + wait_seconds)
        if found is not None and making.is_refused(found):
            await making.withdraw(self._accounts, self.database, key, quietly=True)
        async with self.unit(request) as unit:
            if found is None:
                raise NotFound(f"dataset '{key.dataset}' was deleted before its version {key.number} was ready")
            if making.is_refused(found):
                raise versions.refusal(found)
            return await unit.reply(wire.version_message(found, await repository.splits(unit.session, found)))


def _request_key() -> str | None:
    call = current_call()
    return f"{call.method} {call.idempotency_key}" if call.idempotency_key else None


def _number(token: str) -> int | None:
    after = start_after(token)
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 16):
        raise Invalid.of([Violation("page_token", "must be the next_page_token of the page before")])
    return int(after)
