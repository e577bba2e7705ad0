"""Before a batch prediction is stored: what others know of its model, its data and the quota. Awaits the network, outside of units."""

import asyncio
import time

import structlog

from lepton.accounts.v1.accounts_service_pb2 import ReleaseQuotaRequest, ReserveQuotaRequest
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2 import GetDatasetRequest, GetDatasetVersionRequest
from lepton.deployment.v1.deployment_service_pb2 import CreateBatchPredictionRequest
from lepton.training.v1.job_pb2 import TASK_TEXT_GENERATION
from lepton.training.v1.model_pb2 import MODEL_SOURCE_UPLOADED, ModelVersion
from lepton.training.v1.training_service_pb2 import GetModelVersionRequest
from libs.db import Database, new_id
from libs.errors import AppError, Conflict, Invalid, NotFound, Violation
from services.deployment import wire
from services.deployment.domain import batch as rules
from services.deployment.domain.batch import BatchState
from services.deployment.domain.reference import parse_reference
from services.deployment.domain.resources import CORE_MILLIS, MIB, Needs, why_never
from services.deployment.handlers import batches
from services.deployment.handlers.admission import Peers, rooms, traceparent
from services.deployment.handlers.served import Served
from services.deployment.tables import BatchPrediction

log = structlog.get_logger()

METRIC = "predictions"
# Arrow, and a batch of rows on its way through it.
TABLES_BYTES = 512 * MIB
MAX_ROWS = 1_000_000_000


async def admit(peers: Peers, workspace: str, request: CreateBatchPredictionRequest, part_rows: int) -> BatchPrediction:
    """The job as it will be stored, complete. Raises Invalid ("invalid_spec") with everything that is wrong."""
    needs = wire.needs_of(request.resources)
    if not needs.is_cpu:
        raise Invalid.of([Violation("resources.accelerator", "batch predictions compute on cores; leave it out, or say cpu")])
    model, version, found = await asyncio.gather(_model(peers, request.model), _version(peers, request.dataset), rooms(peers))
    await _require_table(peers, request.output)
    served = Served(model.model, model.number, wire.files_of(model))
    complete = _complete(served, needs)
    dataset = f"{version.dataset}@{version.number}"
    columns = wire.columns_of(version)
    kept, errors = rules.kept(columns, request.columns)
    probabilities = request.probabilities if request.HasField("probabilities") else True
    new = rules.added(wire.fields_of(model.signature.outputs), probabilities)
    errors = rules.wrong_inputs(wire.fields_of(model.signature.inputs), columns, dataset) + errors + rules.clashes(kept, new)
    if never := why_never(complete, found):
        errors.append(Violation("resources", never))
    if not 0 < version.rows <= MAX_ROWS:
        errors.append(Violation("dataset", f"{dataset} has {version.rows} rows; there can be 1 to {MAX_ROWS}"))
    if errors:
        raise Invalid.of(errors, code="invalid_spec")
    return BatchPrediction(
        id=new_id("bp"),
        workspace=workspace,
        model=served.model,
        model_version=served.number,
        files=served.files,
        dataset=dataset,
        splits=wire.splits_of(version),
        kept=[column.name for column in kept],
        columns=[column.to_json() for column in (*kept, *new)],
        probabilities=probabilities,
        output=request.output,
        part_rows=rules.part_rows(version.rows, min(part_rows, rules.BROUGHT_PART_ROWS) if _is_brought(model) else part_rows),
        rows=version.rows,
        cpu_millis=complete.cpu_millis,
        memory_bytes=complete.memory_bytes,
        state=BatchState.RESERVING,
        create_time=time.time(),
        traceparent=traceparent(),
    )


def _complete(served: Served, needs: Needs) -> Needs:
    """A core, and memory for model and tables, where the caller does not say."""
    complete = served.complete(needs)
    return Needs(
        "cpu",
        complete.count,
        needs.memory_bytes or complete.memory_bytes + TABLES_BYTES,
        needs.cpu_millis or complete.count * CORE_MILLIS,
    )


async def _model(peers: Peers, reference: str) -> ModelVersion:
    name, number = parse_reference(reference)
    version: ModelVersion = await peers.training.GetModelVersion(GetModelVersionRequest(name=name, number=number))
    if not version.files:
        raise Conflict(f"model version {version.model}@{version.number} has no files: it cannot predict")
    if why := _unsupported(version):
        raise Invalid.of([Violation("model", f"{version.model}@{version.number} {why}, or ask an endpoint of it")], code="invalid_spec")
    return version


def _is_brought(version: ModelVersion) -> bool:
    return version.source == MODEL_SOURCE_UPLOADED


def _unsupported(version: ModelVersion) -> str:
    """Why no batch of rows goes through it; empty where one does."""
    if _is_brought(version) and not (version.signature.inputs and version.signature.outputs):
        return "does not say which columns it takes and gives: push it with inputs and outputs in its signature.json"
    return "writes texts: take a model that predicts columns" if version.task == TASK_TEXT_GENERATION else ""


async def _version(peers: Peers, reference: str) -> dataset_pb2.DatasetVersion:
    name, number = parse_reference(reference, "dataset")
    version: dataset_pb2.DatasetVersion = await peers.data.GetDatasetVersion(GetDatasetVersionRequest(name=name, number=number))
    if version.state == dataset_pb2.VERSION_STATE_FAILED:
        raise Conflict(f"dataset version {name}@{version.number} could not be made: {version.error.detail}")
    if version.state != dataset_pb2.VERSION_STATE_READY:
        raise Conflict(f"dataset version {name}@{version.number} is still being made; wait until it is ready")
    return version


async def _require_table(peers: Peers, output: str) -> None:
    """Now, and not once every row is predicted."""
    try:
        dataset = await peers.data.GetDataset(GetDatasetRequest(name=output))
    except NotFound:
        return
    if dataset.kind == dataset_pb2.DATASET_KIND_IMAGES:
        raise Invalid.of([Violation("output", f"dataset '{output}' holds pictures, and predictions are a table; take another name")])


async def reserve(database: Database, peers: Peers, batch: BatchPrediction) -> None:
    """Takes the quota of its rows, or removes it again and raises what accounts says. It was stored before: a process that dies in between
    leaves a row by which the planner does the same."""
    name = reservation(batch)
    request = ReserveQuotaRequest(workspace=batch.workspace, metric=METRIC, reservation=name, amount=batch.rows)
    try:
        await peers.accounts.ReserveQuota(request)
    except AppError:
        try:
            await withdraw(database, peers, batch)
        except AppError as error:
            log.warning("withdrawal_put_off", batch_prediction=batch.id, error=str(error))
        raise


async def withdraw(database: Database, peers: Peers, batch: BatchPrediction) -> None:
    """Gives the quota back, then removes what nobody has seen."""
    await release_quota(peers, batch)
    async with database.unit() as unit:
        await batches.withdraw_batch(unit, workspace=batch.workspace, id=batch.id)


async def release_quota(peers: Peers, batch: BatchPrediction) -> None:
    """What of it was not used; nothing to give back is fine."""
    await peers.accounts.ReleaseQuota(ReleaseQuotaRequest(workspace=batch.workspace, reservation=reservation(batch)))


def reservation(batch: BatchPrediction) -> str:
    """The name that accounts knows its quota by."""
    return f"batch-predictions/{batch.workspace}/{batch.id}"
