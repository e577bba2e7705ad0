"""Bytes of datasets: uploads and Parquet."""

import re
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from lepton.common.v1 import options_pb2, resource_pb2
from lepton.data.v1 import data_service_pb2, dataset_pb2
from libs.errors import Conflict, Invalid, Violation, near
from libs.rpc import Client, current_call, validate
from libs.rpc.json_codec import dump, from_text, parse
from libs.rpc.names import descriptor_of
from libs.rpc.schema import Schemas
from libs.storage import ArtifactStore, Stored
from services.gateway import documents
from services.gateway.auth import require_role
from services.gateway.files import DIRECT, send_artifact
from services.gateway.intake import Intake
from services.gateway.messages import idempotency_key, json_response, query_values, read_chunks
from services.gateway.operations import Operation
from services.gateway.problems import Problems
from services.gateway.settings import Limits
from services.gateway.uploads import UploadTokens

PARQUET = "application/vnd.apache.parquet"
DEFAULT_WAIT_SECONDS = 20.0
_MAX_WAIT_SECONDS = 60.0
_FILE_NAME = re.compile(r"""filename\*=UTF-8''([^;]+)|filename="([^"]*)"|filename=([^;\s]+)""", re.IGNORECASE)
_READY = dataset_pb2.VERSION_STATE_READY


class Datasets:
    """Handlers of the two routes."""

    def __init__(
        self, data: Client, store: ArtifactStore, tokens: UploadTokens, intake: Intake, limits: Limits, problems: Problems
    ) -> None:
        self._data = data
        self._store = store
        self._tokens = tokens
        self._intake = intake
        self._limits = limits
        self._problems = problems

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation("PUT", "/v1/datasets/{name}/content", self.upload, _describe_upload),
            Operation("GET", "/v1/datasets/{name}/versions/{number}/content", self.download, _describe_download),
        ]

    async def upload(self, request: Request) -> Response:
        """Bytes go into the store first, and become a version by their digest."""
        require_role(current_call().identity, options_pb2.ROLE_EDITOR)
        query = query_values(request, {"filename": False, "upload": False, "wait": False})
        wait = _seconds(query.get("wait", [""])[0])
        message = data_service_pb2.IngestContentRequest(
            name=_text("name", request.path_params["name"]),
            content=resource_pb2.Artifact(digest="sha256:"),
            file_name=_text("filename", query["filename"][0] if "filename" in query else _disposition(request)),
            wait_seconds=wait,
        )
        # Before ten gigabytes are received for a name that cannot be.
        validate(message)
        key = idempotency_key(request)
        stored = await (self._adopt(request, query["upload"][0]) if "upload" in query else self._receive(request))
        message.content.digest = stored.digest
        message.content.size_bytes = stored.size
        message.content.media_type = request.headers.get("content-type", "")[:200]
        # Bytes that no version names in the end are swept by the service that owns them: another version may name the same ones.
        version = await self._data.IngestContent(message, timeout=wait + 30, idempotency_key=key)
        location = {"location": f"/v1/datasets/{version.dataset}/versions/{version.number}"}
        return json_response(dump(version), 201 if version.state == _READY else 202, location)

    async def _receive(self, request: Request) -> Stored:
        return await self._intake.receive(request, self._store, self._limits.upload_bytes, "send its bytes as the body")

    async def _adopt(self, request: Request, token: str) -> Stored:
        """What the client sent to the store. Asked again it is the same, as a lost answer may be asked for again."""
        upload = self._tokens.read(token, current_call().identity.workspace)
        async for chunk in read_chunks(request, self._limits.upload_bytes, self._limits.body_seconds):
            if chunk:
                raise Invalid.of([Violation("upload", "names bytes that are in the store already; send no body with it")])
        return await self._store.adopt(upload.id, digest=upload.digest, size=upload.size)

    async def download(self, request: Request) -> Response:
        """One split's Parquet file."""
        query = query_values(request, {"split": False})
        fields = descriptor_of(data_service_pb2.GetDatasetVersionRequest).fields_by_name
        values: dict[str, Any] = {name: from_text(fields[name], [request.path_params[name]]) for name in ("name", "number")}
        asked = parse(data_service_pb2.GetDatasetVersionRequest, values)
        version = await self._data.GetDatasetVersion(asked)
        if version.state != _READY:
            raise Conflict(f"version {version.number} of '{version.dataset}' is not ready; GET it to see why")
        split = _split(version, query.get("split", [""])[0])
        name = f"{version.dataset}-{version.number}{'' if split.name == 'all' else '-' + split.name}.parquet"
        return await send_artifact(request, self._store, split.file, name, PARQUET, self._problems)


def _split(version: dataset_pb2.DatasetVersion, wanted: str) -> dataset_pb2.Split:
    names = [split.name for split in version.splits]
    if not wanted and len(names) == 1:
        return version.splits[0]
    if wanted not in names:
        words = f"there is no split '{wanted[:60]}'; there {'is' if len(names) == 1 else 'are'}" if wanted else "is required: one of"
        raise Invalid.of([Violation("split", f"{words} {', '.join(names)}", tuple(near(wanted, names) or names))])
    return next(split for split in version.splits if split.name == wanted)


def _seconds(text: str) -> float:
    if not text:
        return DEFAULT_WAIT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_WAIT_SECONDS:
        raise Invalid.of([Violation("wait", f"must be a number of seconds from 0 to {_MAX_WAIT_SECONDS:g}")])
    return seconds


def _disposition(request: Request) -> str:
    match = _FILE_NAME.search(request.headers.get("content-disposition", ""))
    if match is None:
        return ""
    return unquote(match[1]) if match[1] else match[2] or match[3] or ""


def _text(field: str, value: str) -> str:
    if "\0" in value:
        raise Invalid.of([Violation(field, "must not contain the character NUL")])
    return value


def _describe_upload(schemas: Schemas) -> dict[str, Any]:
    version = schemas.received(descriptor_of(dataset_pb2.DatasetVersion))
    seconds = {"type": "number", "minimum": 0, "maximum": _MAX_WAIT_SECONDS, "default": DEFAULT_WAIT_SECONDS}
    return documents.operation(
        "datasets",
        "UploadContent",
        "Upload content",
        description="Makes a new version of a file: CSV, TSV, JSON lines, Parquet, or a ZIP of pictures in a folder a class. "
        "The dataset is made when there is none. A file that cannot be read is answered with the error and leaves nothing behind. "
        "Large files need not pass the platform: POST /v1/uploads gives an address for them.",
        parameters=[
            documents.parameter("path", "name", schemas.field(descriptor_of(data_service_pb2.IngestContentRequest).fields_by_name["name"])),
            documents.parameter("query", "filename", {"type": "string", "maxLength": 255}, "Tells the format where the bytes do not."),
            documents.parameter(
                "query",
                "upload",
                {"type": "string", "minLength": 1},
                "The token of POST /v1/uploads, once the bytes are there: then the body is empty.",
            ),
            documents.parameter("query", "wait", seconds, "Longest time in seconds to wait for the outcome."),
        ],
        body={**documents.content("application/octet-stream", {"type": "string", "format": "binary"})},
        answers={
            "201": documents.answer("The version is ready.", "application/json", version),
            "202": documents.answer("The version is still being processed: watch it.", "application/json", version),
        },
    )


def _describe_download(schemas: Schemas) -> dict[str, Any]:
    fields = descriptor_of(data_service_pb2.GetDatasetVersionRequest).fields_by_name
    binary = {"type": "string", "format": "binary"}
    return documents.operation(
        "datasets",
        "DownloadContent",
        "Download content",
        description="The rows as Parquet. Takes single ranges; the entity tag is the digest. " + DIRECT,
        parameters=[
            documents.parameter("path", "name", documents.NAME),
            documents.parameter("path", "number", schemas.field(fields["number"])),
            documents.parameter("query", "split", {"type": "string", "maxLength": 40}, "Needed where there are several."),
        ],
        answers={
            "200": documents.answer("The file.", PARQUET, binary),
            "206": documents.answer("The range that was asked for.", PARQUET, binary),
            "304": documents.answer("The entity tag in If-None-Match still holds."),
            "307": documents.answer("GET the file at the address in Location, without the API key."),
        },
    )
