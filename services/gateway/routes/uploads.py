"""Where large files go by themselves: an address in the artifact store, and a token to name what was sent there."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lepton.common.v1 import options_pb2
from libs.errors import AppError, Invalid, Violation, near
from libs.rpc import current_call
from libs.rpc.schema import Schemas
from libs.storage import ArtifactStore
from services.gateway import documents
from services.gateway.auth import require_role
from services.gateway.examples import EXAMPLES
from services.gateway.intake import Intake
from services.gateway.messages import json_response, query_values, read_json
from services.gateway.operations import Operation
from services.gateway.problems import too_large
from services.gateway.settings import Limits
from services.gateway.uploads import BEGIN_SECONDS, Upload, UploadTokens

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("sha256", "size_bytes")


class Uploads:
    """Handler of the one route."""

    def __init__(self, intake: Intake, store: ArtifactStore, tokens: UploadTokens, limits: Limits) -> None:
        self._intake = intake
        self._store = store
        self._tokens = tokens
        self._limits = limits

    def operations(self) -> list[Operation]:
        """It."""
        return [Operation("POST", "/v1/uploads", self.create, _describe)]

    async def create(self, request: Request) -> Response:
        """Nothing is kept of it here: the token knows, and the store tells what was sent."""
        identity = current_call().identity
        require_role(identity, options_pb2.ROLE_EDITOR)
        query_values(request, {})
        sha256, size = _announced(await read_json(request, self._limits))
        if size > self._limits.upload_bytes:
            raise too_large("the file", self._limits.upload_bytes)
        begun = datetime.now(UTC)
        direct = await self._store.upload_url(digest=f"sha256:{sha256}", size=size, seconds=BEGIN_SECONDS)
        if direct is None:
            raise AppError(
                "clients do not reach the artifact store here; send the file as the body of its own request", code="unimplemented"
            )
        await self._intake.require_room(size)
        answer = {
            "upload": self._tokens.make(Upload(identity.workspace, direct.id, f"sha256:{sha256}", size)),
            "url": direct.url,
            "headers": dict(direct.headers),
            "expire_time": (begun + timedelta(seconds=BEGIN_SECONDS)).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        return json_response(answer, 201)


def _announced(body: dict[str, Any]) -> tuple[str, int]:
    """Digits and size; raises Invalid with all that is wrong."""
    found = []
    for name in body.keys() - set(_FIELDS):
        close = tuple(near(name, _FIELDS))
        found.append(Violation(name[:100], f"is not a field here; there are {', '.join(_FIELDS)}", close))
    sha256, size = body.get("sha256"), body.get("size_bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        found.append(Violation("sha256", "must be the SHA-256 of the file's bytes, as 64 hexadecimal digits in lower case"))
    if type(size) is not int or size < 1:
        found.append(Violation("size_bytes", "must be the number of the file's bytes, at least 1"))
    if found:
        raise Invalid.of(found)
    return str(sha256), int(size)  # type: ignore[arg-type]


def _describe(_schemas: Schemas) -> dict[str, Any]:
    size = {"type": "integer", "format": "int64", "minimum": 1}
    announced = {
        "type": "object",
        "required": list(_FIELDS),
        "properties": {
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "Of the file's bytes; the store takes no others."},
            "size_bytes": size,
        },
        "additionalProperties": False,
    }
    answer = {
        "type": "object",
        "required": ["upload", "url", "headers", "expire_time"],
        "properties": {
            "upload": {"type": "string", "description": "Names the upload afterwards, in this workspace, for 12 hours."},
            "url": {"type": "string", "description": "PUT the bytes there, in one request without the API key."},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}, "description": "To be sent with the bytes."},
            "expire_time": {"type": "string", "format": "date-time", "description": "Until then the PUT has to begin."},
        },
    }
    return documents.operation(
        "datasets",
        "CreateUpload",
        "Create upload",
        description="An address in the artifact store for a large file, of at most 5 GiB. When its bytes are there, `PUT "
        "/v1/datasets/{name}/content?upload=…` without a body makes a version of them. Where clients do not reach the store the answer is "
        "501, and files are sent as bodies.",
        body={**documents.content("application/json", announced, example=EXAMPLES["CreateUpload"]), "required": True},
        answers={"201": documents.answer("The address, good for this file alone.", "application/json", answer)},
    )
