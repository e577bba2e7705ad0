"""Files of model versions, and versions that members bring."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lepton.common.v1 import options_pb2, resource_pb2
from lepton.training.v1 import model_pb2, training_service_pb2
from libs.errors import NotFound
from libs.modelkit.archive import MAX_BYTES
from libs.rpc import Client, current_call, validate
from libs.rpc.json_codec import dump, from_text, parse
from libs.rpc.names import descriptor_of
from libs.rpc.schema import Schemas
from libs.storage import ArtifactStore
from services.gateway import documents
from services.gateway.auth import require_role
from services.gateway.files import DIRECT, send_artifact
from services.gateway.intake import Intake
from services.gateway.messages import idempotency_key, json_response, query_values
from services.gateway.operations import Operation
from services.gateway.problems import Problems
from services.gateway.settings import Limits

_BINARY = "application/octet-stream"
_REGISTER_SECONDS = 300


class Models:
    """Handlers of the two routes."""

    def __init__(self, training: Client, store: ArtifactStore, intake: Intake, limits: Limits, problems: Problems) -> None:
        self._training = training
        self._store = store
        self._intake = intake
        self._limit = min(limits.upload_bytes, MAX_BYTES)
        self._problems = problems

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation("PUT", "/v1/models/{name}/content", self.upload, _describe_upload),
            Operation("GET", "/v1/models/{name}/versions/{number}/files/{path:path}", self.download, _describe),
        ]

    async def upload(self, request: Request) -> Response:
        """Bytes go into the store first, and become a version by their digest; those that do not are swept by training."""
        require_role(current_call().identity, options_pb2.ROLE_EDITOR)
        query_values(request, {})
        fields = descriptor_of(training_service_pb2.RegisterModelVersionRequest).fields_by_name
        message = training_service_pb2.RegisterModelVersionRequest(
            name=from_text(fields["name"], [request.path_params["name"]]), content=resource_pb2.Artifact(digest="sha256:")
        )
        # Before a gigabyte is received for a name that cannot be.
        validate(message)
        key = idempotency_key(request)
        stored = await self._intake.receive(request, self._store, self._limit, "send a ZIP with model.py as the body")
        message.content.digest, message.content.size_bytes = stored.digest, stored.size
        version = await self._training.RegisterModelVersion(message, timeout=_REGISTER_SECONDS, idempotency_key=key)
        return json_response(dump(version), 201, {"location": f"/v1/models/{version.model}/versions/{version.number}"})

    async def download(self, request: Request) -> Response:
        """A file of the package, as ModelVersion.files lists it."""
        query_values(request, {})
        fields = descriptor_of(training_service_pb2.GetModelVersionRequest).fields_by_name
        values: dict[str, Any] = {name: from_text(fields[name], [request.path_params[name]]) for name in ("name", "number")}
        version = await self._training.GetModelVersion(parse(training_service_pb2.GetModelVersionRequest, values))
        path = request.path_params["path"]
        files = {file.path: file for file in version.files}
        if path not in files:
            raise NotFound.of("file", path[:200], files)
        file = files[path]
        return await send_artifact(request, self._store, file, path.rpartition("/")[2], file.media_type or _BINARY, self._problems)


def _describe_upload(schemas: Schemas) -> dict[str, Any]:
    fields = descriptor_of(training_service_pb2.RegisterModelVersionRequest).fields_by_name
    version = schemas.received(descriptor_of(model_pb2.ModelVersion))
    return documents.operation(
        "models",
        "UploadModel",
        "Upload model",
        description="Makes a version of a ZIP of at most 1 GiB and 95 files: model.py with a class `Model` that has "
        "`load(self, folder)` and `predict(self, records)`, and what it reads; signature.json says what records and answers are, and "
        "requirements.txt pins packages: those that the platform lacks (`/v1/model-runtime`), and what they need, are wheels in the folder "
        "`wheels`. Or model.onnx, which says itself what it takes, with names.json where its numbers have names: "
        '{"features": […], "classes": […]}, either of the two; with classes it answers as a classifier that the platform trained. '
        "The model is made when there is none. What is brought runs in the endpoint's sandbox alone.",
        parameters=[documents.parameter("path", "name", schemas.field(fields["name"]))],
        body={**documents.content(_BINARY, {"type": "string", "format": "binary"})},
        answers={"201": documents.answer("The version.", "application/json", version)},
    )


def _describe(schemas: Schemas) -> dict[str, Any]:
    fields = descriptor_of(training_service_pb2.GetModelVersionRequest).fields_by_name
    binary = {"type": "string", "format": "binary"}
    return documents.operation(
        "models",
        "DownloadModelFile",
        "Download model file",
        description="A file of the model package, such as its weights or its ONNX export. Takes single ranges. " + DIRECT,
        parameters=[
            documents.parameter("path", "name", documents.NAME),
            documents.parameter("path", "number", schemas.field(fields["number"])),
            documents.parameter("path", "path", documents.NAME, "As in the version's `files`."),
        ],
        answers={
            "200": documents.answer("The file.", _BINARY, binary),
            "206": documents.answer("The range that was asked for.", _BINARY, binary),
            "304": documents.answer("The entity tag in If-None-Match still holds."),
            "307": documents.answer("GET the file at the address in Location, without the API key."),
        },
    )
