"""Rows and plain specs ↔ messages of the contract."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from lepton.common.v1 import resource_pb2
from lepton.compute.v1 import node_pb2
from lepton.data.v1 import dataset_pb2
from lepton.training.v1 import events_pb2, job_pb2, model_pb2
from lepton.training.v1 import training_service_pb2 as service_pb2
from libs.errors import AppError
from libs.events import Event
from libs.modelkit import image
from libs.rpc import to_problem
from libs.rpc.json_codec import dump, parse
from libs.rpc.names import enum_name_by_number
from services.training.domain.admission import DataFacts, InitFacts, NodeFacts
from services.training.tables import Model, ModelVersion, TrainingJob

_LONGEST_LIST = 1000


def timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp


def state_name(state: int) -> str:
    """ "" for unspecified."""
    return enum_name_by_number(job_pb2.JobState.DESCRIPTOR)[state] if state else ""


# In


def spec_of(request: service_pb2.CreateTrainingJobRequest) -> dict[str, Any]:
    """The request as the domain reads it: short names, None where nothing was said."""
    training = dump(request.training)
    for name in ("epochs", "batch_size", "time_limit_seconds"):
        training[name] = training[name] or None
    training["optimizer"] = None if training["optimizer"] == "unspecified" else training["optimizer"]
    resources = dump(request.resources)
    resources["accelerator"] = None if resources["accelerator"] == "unspecified" else resources["accelerator"]
    model = dump(request.model)
    return {
        "task": enum_name_by_number(job_pb2.Task.DESCRIPTOR)[request.task],
        "target": request.target,
        "features": list(request.features),
        "model": {"architecture": model["architecture"], "params": model.get("params") or {}, "init": request.model.init},
        "training": training,
        "resources": resources,
    }


def data_facts(version: dataset_pb2.DatasetVersion, profile: dataset_pb2.Profile | None) -> DataFacts:
    types = enum_name_by_number(dataset_pb2.ColumnType.DESCRIPTOR)
    columns = [{"name": c.name, "type": types[c.type], "nullable": c.nullable} for c in version.columns]
    if profile is None:
        return DataFacts(columns, None)
    figures = [{"name": c.name, "nulls": c.nulls, "nans": c.nans, "distinct": c.distinct} for c in profile.columns]
    return DataFacts(columns, {"rows": profile.rows or version.rows, "columns": figures})


def node_facts(nodes: Sequence[node_pb2.Node]) -> list[NodeFacts]:
    names = enum_name_by_number(resource_pb2.Accelerator.DESCRIPTOR)
    facts = []
    for node in nodes:
        devices: dict[str, int] = {}
        for device in node.devices:
            devices[names[device.accelerator]] = devices.get(names[device.accelerator], 0) + 1
        facts.append(NodeFacts(node.cpu_millis, node.memory_bytes, devices, node.pool if node.cluster else ""))
    return facts


def init_facts(version: ModelVersion, params: Mapping[str, Any]) -> InitFacts:
    message = version_message(version)
    return InitFacts(
        name=f"{version.model}@{version.number}",
        task=enum_name_by_number(job_pb2.Task.DESCRIPTOR)[message.task],
        architecture=enum_name_by_number(job_pb2.Architecture.DESCRIPTOR)[message.architecture],
        params=params,
        inputs=[field.name for field in message.signature.inputs],
    )


def resources_message(resources: Mapping[str, Any]) -> resource_pb2.Resources:
    return parse(resource_pb2.Resources, dict(resources))


# Out


def job_message(job: TrainingJob) -> job_pb2.TrainingJob:
    return job_pb2.TrainingJob(
        id=job.id,
        name=job.name,
        workspace=job.workspace,
        dataset=job.dataset,
        task=f"TASK_{job.task.upper()}",
        target=job.target,
        features=job.features,
        output_model=job.output_model,
        model=parse(job_pb2.ModelSpec, job.model),
        training=parse(job_pb2.TrainingSpec, job.training),
        resources=resources_message(job.resources),
        state=f"JOB_STATE_{job.state.upper()}",
        reason=job.reason,
        progress=parse(job_pb2.Progress, job.progress) if job.progress else None,
        error=to_problem(AppError.from_dict(job.error)) if job.error else None,
        model_version=job.model_version,
        attempts=job.attempts,
        metrics=job.metrics,
        create_time=timestamp(job.create_time),
        start_time=timestamp(job.start_time),
        first_step_time=timestamp(job.first_step_time),
        end_time=timestamp(job.end_time),
        trace_id=job.trace_id,
    )


def model_message(model: Model) -> model_pb2.Model:
    return model_pb2.Model(
        name=model.name, workspace=model.workspace, latest_version=model.latest_version, create_time=timestamp(model.create_time)
    )


def version_message(version: ModelVersion) -> model_pb2.ModelVersion:
    return model_pb2.ModelVersion.FromString(version.message)


def registered_version(
    job: TrainingJob, number: int, package: Mapping[str, Any], result: Mapping[str, Any], files: Sequence[resource_pb2.Artifact], now: float
) -> model_pb2.ModelVersion:
    """`package` is the model.json of the package, `result` what the run said of it."""
    version = model_pb2.ModelVersion(
        model=job.output_model,
        number=number,
        workspace=job.workspace,
        task=f"TASK_{job.task.upper()}",
        architecture=f"ARCHITECTURE_{job.model['architecture'].upper()}",
        signature=parse(model_pb2.Signature, package["signature"]),
        metrics=job.metrics,
        files=files,
        training_job=job.id,
        dataset=job.dataset,
        parameters=_count(result, "parameters"),
        training_rows=_count(result, "training_rows"),
        test_rows=_count(result, "test_rows"),
        create_time=timestamp(now),
        trace_id=job.trace_id,
        source=model_pb2.MODEL_SOURCE_TRAINED,
    )
    version.preprocessing.update(_shortened(package["preprocessing"]))
    return version


def uploaded_version(
    model: Model, package: Mapping[str, Any], files: Sequence[resource_pb2.Artifact], now: float, trace_id: str
) -> model_pb2.ModelVersion:
    """The model's newest; `package` is its model.json."""
    signature = parse(model_pb2.Signature, package["signature"]) if package["signature"] else None
    return model_pb2.ModelVersion(
        model=model.name,
        number=model.latest_version,
        workspace=model.workspace,
        signature=signature,
        files=files,
        create_time=timestamp(now),
        trace_id=trace_id,
        source=model_pb2.MODEL_SOURCE_UPLOADED,
    )


def metric_message(name: str, step: int, epoch: int, value: float, time: float) -> job_pb2.MetricPoint:
    return job_pb2.MetricPoint(name=name, step=step, epoch=epoch, value=value, time=timestamp(time))


def log_message(number: int, stream: str, text: str, time: float) -> job_pb2.LogLine:
    return job_pb2.LogLine(number=number, stream=stream, text=text, time=timestamp(time))


def watch_message(number: int, kind: str, message: bytes) -> service_pb2.WatchTrainingJobResponse:
    response = service_pb2.WatchTrainingJobResponse(event_id=str(number))
    getattr(response, kind).MergeFromString(message)
    return response


# Events


def job_created(job: TrainingJob) -> Event:
    return Event.of(events_pb2.TrainingJobCreated(job=job_message(job)), key=job.id)


def job_started(job: TrainingJob) -> Event:
    return Event.of(events_pb2.TrainingJobStarted(workspace=job.workspace, job_id=job.id, attempt=job.attempts), key=job.id)


def job_ended(job: TrainingJob) -> Event:
    return Event.of(events_pb2.TrainingJobEnded(job=job_message(job)), key=job.id)


def version_registered(version: model_pb2.ModelVersion, reservation: str = "") -> Event:
    message = events_pb2.ModelVersionRegistered(model_version=version, reservation=reservation)
    return Event.of(message, key=f"{version.workspace}/{version.model}")


def model_deleted(workspace: str, model: str) -> Event:
    return Event.of(events_pb2.ModelDeleted(workspace=workspace, model=model), key=f"{workspace}/{model}")


def runtime_message(packages: Mapping[str, str]) -> model_pb2.ModelRuntime:
    found = [model_pb2.RuntimePackage(name=name, version=version) for name, version in sorted(packages.items())]
    return model_pb2.ModelRuntime(python=image.PYTHON, platforms=image.PLATFORMS, packages=found)


def _count(result: Mapping[str, Any], name: str) -> int:
    value = result.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _shortened(value: Any) -> Any:
    """Vocabularies stay in the package's model.json: a message of a megabyte would travel with every listing."""
    if isinstance(value, Mapping):
        return {str(key): _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) > _LONGEST_LIST:
            return {"length": len(value), "in": "model.json"}
        return [_shortened(item) for item in value]
    return value
