"""Between the contract's messages, the rows and the engine's JSON; and the events of the data service."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from lepton.common.v1.resource_pb2 import Artifact
from lepton.data.v1 import dataset_pb2, events_pb2
from lepton.data.v1.data_service_pb2 import CreateDerivedDatasetVersionRequest
from libs.errors import AppError
from libs.events import Event
from libs.rpc import to_problem
from libs.rpc.json_codec import dump
from services.data.domain.states import State
from services.data.tables import SPLIT, UPLOAD, Dataset, File, Version

PARQUET = "application/vnd.apache.parquet"
KINDS = {"": dataset_pb2.DATASET_KIND_UNSPECIFIED, "table": dataset_pb2.DATASET_KIND_TABLE, "images": dataset_pb2.DATASET_KIND_IMAGES}
STATES = {
    State.RESERVING: dataset_pb2.VERSION_STATE_PROCESSING,
    State.PROCESSING: dataset_pb2.VERSION_STATE_PROCESSING,
    State.READY: dataset_pb2.VERSION_STATE_READY,
    State.FAILED: dataset_pb2.VERSION_STATE_FAILED,
    State.REFUSED: dataset_pb2.VERSION_STATE_FAILED,
}
TYPES = {
    "double": dataset_pb2.COLUMN_TYPE_DOUBLE,
    "integer": dataset_pb2.COLUMN_TYPE_INTEGER,
    "boolean": dataset_pb2.COLUMN_TYPE_BOOLEAN,
    "string": dataset_pb2.COLUMN_TYPE_STRING,
    "timestamp": dataset_pb2.COLUMN_TYPE_TIMESTAMP,
    "image": dataset_pb2.COLUMN_TYPE_IMAGE,
}
_TYPE_NAMES = {number: name for name, number in TYPES.items()}


def dataset_message(row: Dataset, latest_version: int) -> dataset_pb2.Dataset:
    message = dataset_pb2.Dataset(
        name=row.name,
        workspace=row.workspace,
        description=row.description,
        kind=KINDS[row.kind],
        latest_version=latest_version,
    )
    _set_time(message, "create_time", row.create_time)
    return message


def version_message(row: Version, files: Iterable[File]) -> dataset_pb2.DatasetVersion:
    """`files`: those of this version, perhaps among others."""
    message = dataset_pb2.DatasetVersion(
        dataset=row.dataset,
        number=row.number,
        workspace=row.workspace,
        kind=KINDS[row.kind],
        state=STATES[State(row.state)],
        columns=column_messages(row.columns),
        rows=row.rows,
        size_bytes=row.size,
        splits=[
            dataset_pb2.Split(name=file.name, rows=file.rows, file=_artifact(file))
            for file in files
            if file.number == row.number and file.role == SPLIT
        ],
        lineage=dataset_pb2.Lineage.FromString(row.lineage),
        notices=row.notices,
    )
    if row.error:
        message.error.CopyFrom(to_problem(AppError.from_dict(row.error)))
    _set_time(message, "create_time", row.create_time)
    _set_time(message, "ready_time", row.ready_time)
    return message


def column_messages(columns: Sequence[Mapping[str, Any]]) -> list[dataset_pb2.Column]:
    return [dataset_pb2.Column(name=c["name"], type=TYPES[c["type"]], nullable=c["nullable"]) for c in columns]


def _artifact(file: File) -> Artifact:
    return Artifact(digest=file.digest, size_bytes=file.size, path=f"{file.name}.parquet", media_type=PARQUET)


def _set_time(message: Message, field: str, seconds: float | None) -> None:
    if seconds is not None:
        getattr(message, field).FromMicroseconds(int(seconds * 1e6))


def upload_lineage(file_name: str, digest: str, size: int, media_type: str) -> bytes:
    upload = Artifact(digest=digest, size_bytes=size, path=file_name, media_type=media_type)
    return dataset_pb2.Lineage(kind=UPLOAD, file_name=file_name, upload=upload).SerializeToString()


def transform_lineage(source: Version, steps: Sequence[dataset_pb2.TransformStep]) -> bytes:
    return dataset_pb2.Lineage(kind="transform", source=f"{source.dataset}@{source.number}", steps=steps).SerializeToString()


def prediction_lineage(request: CreateDerivedDatasetVersionRequest) -> bytes:
    lineage = dataset_pb2.Lineage(kind="prediction", source=request.source, model=request.model, batch_prediction=request.batch_prediction)
    return lineage.SerializeToString()


def engine_columns(columns: Iterable[dataset_pb2.Column]) -> list[dict[str, Any]]:
    """As the engine takes them."""
    return [{"name": column.name, "type": _TYPE_NAMES[column.type], "nullable": column.nullable} for column in columns]


def engine_steps(steps: Sequence[dataset_pb2.TransformStep]) -> list[dict[str, Any]]:
    """As the engine takes them: JSON with short enum names."""
    return [dump(step) for step in steps]


def profile_message(profile: Mapping[str, Any]) -> dataset_pb2.Profile:
    """From the engine's JSON."""
    message = dataset_pb2.Profile(rows=profile["rows"], duplicate_rows=profile["duplicate_rows"])
    for entry in profile["columns"]:
        column = message.columns.add()
        for name, value in entry.items():
            if name == "type":
                column.type = TYPES[value]
            elif name == "top":
                column.top.extend(dataset_pb2.ValueCount(value=one["value"], count=one["count"]) for one in value)
            elif isinstance(value, list):
                getattr(column, name).extend(value)
            else:
                setattr(column, name, value)
    return message


def row_messages(rows: Iterable[Mapping[str, Any]]) -> list[Struct]:
    messages = []
    for row in rows:
        message = Struct()
        message.update(row)
        messages.append(message)
    return messages


def ready(row: Version, files: Iterable[File]) -> Event:
    return Event.of(events_pb2.DatasetVersionReady(version=version_message(row, files)), key=f"{row.workspace}/{row.dataset}")


def failed(row: Version) -> Event:
    return Event.of(events_pb2.DatasetVersionFailed(version=version_message(row, ())), key=f"{row.workspace}/{row.dataset}")


def deleted(row: Dataset, numbers: Sequence[int]) -> Event:
    message = events_pb2.DatasetDeleted(workspace=row.workspace, dataset=row.name, versions=numbers)
    return Event.of(message, key=f"{row.workspace}/{row.name}")
