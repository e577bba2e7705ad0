"""Files of model versions."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lepton.training.v1 import training_service_pb2
from libs.errors import NotFound
from libs.rpc import Client
from libs.rpc.json_codec import from_text, parse
from libs.rpc.names import descriptor_of
from libs.rpc.schema import Schemas
from libs.storage import ArtifactStore
from services.gateway import documents
from services.gateway.files import DIRECT, send_artifact
from services.gateway.messages import query_values
from services.gateway.operations import Operation
from services.gateway.problems import Problems

_BINARY = "application/octet-stream"


class Models:
    """Handler of the one route."""

    def __init__(self, training: Client, store: ArtifactStore, problems: Problems) -> None:
        self._training = training
        self._store = store
        self._problems = problems

    def operations(self) -> list[Operation]:
        """It."""
        return [Operation("GET", "/v1/models/{name}/versions/{number}/files/{path:path}", self.download, _describe)]

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
