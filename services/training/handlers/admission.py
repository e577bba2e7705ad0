"""Before a job is stored: what others know of its data, the nodes and the quota. Awaits the network, outside of units."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from lepton.accounts.v1.accounts_service_pb2 import GetMeRequest
from lepton.compute.v1.compute_service_pb2 import ListNodesRequest
from lepton.data.v1 import dataset_pb2
from lepton.data.v1.data_service_pb2 import GetDatasetVersionRequest, GetProfileRequest
from lepton.training.v1 import model_pb2
from lepton.training.v1.training_service_pb2 import CreateTrainingJobRequest
from libs.db import Database, new_id
from libs.errors import AppError, Conflict, Invalid, NotFound, Violation
from libs.rpc import Client
from libs.rpc.names import enum_name_by_number
from libs.telemetry import inject
from services.training import repository, wire
from services.training.domain.admission import RANDOM, DataFacts, InitFacts, NodeFacts, check, complete, default_time_limit, used_metric
from services.training.tables import TrainingJob

log = structlog.get_logger()

_REFERENCE = re.compile(r"([a-z][a-z0-9-]{0,62})(?:@([1-9][0-9]{0,8}))?")


@dataclass(frozen=True)
class Peers:
    """Clients of the services that this one asks."""

    data: Client
    compute: Client
    accounts: Client
    deployment: Client


@dataclass(frozen=True)
class _Init:
    facts: InitFacts
    files: list[dict[str, Any]]


async def admit(database: Database, peers: Peers, workspace: str, request: CreateTrainingJobRequest) -> TrainingJob:
    """The job as it will be stored, complete. Raises Invalid ("invalid_spec") with everything that is wrong."""
    spec = wire.spec_of(request)
    missing: list[AppError] = []
    errors: list[Violation] = []
    data, nodes, left, init = await asyncio.gather(
        _collecting(errors, missing, "dataset", _load_data(peers, request.dataset)),
        _load_nodes(peers),
        _load_quotas(peers),
        _collecting(errors, missing, "model.init", _load_init(database, workspace, spec["model"]["init"])),
    )
    version, facts = data or (None, None)
    errors += check(spec, facts, init.facts if init else None, nodes)
    if len(errors) == 1 and missing:
        raise missing[0]
    if errors or version is None or facts is None:
        raise Invalid.of(errors, code="invalid_spec")
    job = _job(workspace, request, complete(spec, facts, init.facts if init else None), version, init)
    if not request.training.time_limit_seconds:
        _share_budget(job, left)
    return job


def _share_budget(job: TrainingJob, left: Mapping[str, int]) -> None:
    """A limit that nobody asked for must not take all of the plan: other jobs are to come."""
    metric, a_second = used_metric(job.resources, job.workers)
    limit = default_time_limit(left.get(metric), a_second)
    if limit < job.training["time_limit_seconds"]:
        job.training = {**job.training, "time_limit_seconds": limit}
        job.limited_by = metric


async def _collecting(errors: list[Violation], missing: list[AppError], at: str, load: Awaitable[Any]) -> Any:
    """What `load` answers; None where it is not there or not usable, which becomes one violation among the others."""
    try:
        return await load
    except (NotFound, Invalid, Conflict) as error:
        if isinstance(error, NotFound):
            missing.append(error)
        suggestions = error.errors[0].suggestions if error.errors else ()
        errors.append(Violation(at, error.detail, suggestions))
        return None


async def _load_data(peers: Peers, reference: str) -> tuple[dataset_pb2.DatasetVersion, DataFacts]:
    name, number = _parse(reference, "dataset")
    version = await peers.data.GetDatasetVersion(GetDatasetVersionRequest(name=name, number=number))
    state = enum_name_by_number(dataset_pb2.VersionState.DESCRIPTOR)[version.state]
    if version.state == dataset_pb2.VERSION_STATE_FAILED:
        raise Conflict(f"dataset version {name}@{version.number} could not be made: {version.error.detail}")
    if version.state != dataset_pb2.VERSION_STATE_READY:
        raise Conflict(f"dataset version {name}@{version.number} is {state}; wait until it is ready")
    profile = None
    try:
        profile = await peers.data.GetProfile(GetProfileRequest(name=name, number=version.number))
    except NotFound:
        log.info("dataset_without_profile", dataset=name, number=version.number)
    return version, wire.data_facts(version, profile)


async def _load_nodes(peers: Peers) -> Sequence[NodeFacts]:
    """None where compute does not say: it will, when it is asked for an allocation."""
    try:
        return wire.node_facts((await peers.compute.ListNodes(ListNodesRequest(page_size=1000), timeout=2)).nodes)
    except AppError as error:
        log.warning("nodes_unknown", error=str(error))
        return ()


async def _load_quotas(peers: Peers) -> dict[str, int]:
    """What is left of each; nothing where accounts does not say."""
    try:
        return {quota.metric: quota.remaining for quota in (await peers.accounts.GetMe(GetMeRequest(), timeout=2)).quotas}
    except AppError as error:
        log.warning("quotas_unknown", error=str(error))
        return {}


async def _load_init(database: Database, workspace: str, init: str) -> _Init | None:
    if init in ("", RANDOM):
        return None
    name, number = _parse(init, "model version", f'use "{RANDOM}", or ')
    async with database.read() as session:
        version = await repository.get_model_version(session, workspace, name, number)
        if wire.version_message(version).source == model_pb2.MODEL_SOURCE_UPLOADED:
            words = f"{version.model}@{version.number} was uploaded: a training goes on from what the platform has trained alone"
            raise Invalid.of([Violation("model.init", words)])
        job = await repository.get_job(session, workspace, version.training_job)
        files = await repository.files_of(session, workspace, version.owner)
    return _Init(wire.init_facts(version, job.model["params"]), [{"path": file.path, "digest": file.digest} for file in files])


def _parse(reference: str, kind: str, advice: str = "") -> tuple[str, int]:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise Invalid(f"'{reference[:60]}' is no {kind}; {advice}write its name, or name@number as in wdbc@2")
    return match[1], int(match[2] or 0)


def _job(
    workspace: str, request: CreateTrainingJobRequest, spec: dict[str, Any], version: dataset_pb2.DatasetVersion, init: _Init | None
) -> TrainingJob:
    traceparent = _traceparent()
    return TrainingJob(
        id=new_id("job"),
        workspace=workspace,
        name=request.name or request.output_model,
        dataset=f"{version.dataset}@{version.number}",
        output_model=request.output_model,
        inputs={
            "kind": enum_name_by_number(dataset_pb2.DatasetKind.DESCRIPTOR)[version.kind],
            "splits": [{"name": split.name, "digest": split.file.digest} for split in version.splits],
            "init": init.files if init else [],
        },
        reason="waits for an allocation",
        create_time=time.time(),
        trace_id=traceparent.split("-")[1],
        traceparent=traceparent,
        **spec,
    )


def _traceparent() -> str:
    return inject().get("traceparent") or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
