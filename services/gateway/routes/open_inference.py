"""The Open Inference Protocol V2 over REST: a model of the protocol is an endpoint of the caller's workspace.

Bytes pass through as they are, both ways; errors have the protocol's own form, {"error": "…"}.
"""

from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from libs.errors import Transient
from libs.rpc import current_call
from libs.rpc.schema import Schemas
from services.gateway import documents
from services.gateway.messages import json_response
from services.gateway.operations import Operation
from services.gateway.predictions import Predictions

SERVER = {"name": "lepton", "version": "2", "extensions": ["binary_tensor_data"]}
# Whoever asks whether a model is ready wants to know it now.
READY_SECONDS = 2.0
_OBJECT = {"type": "object"}
_ERROR = {
    "description": "An error in the protocol's form.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}}},
}


class OpenInference:
    """Handlers under /v2."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions

    def operations(self) -> list[Operation]:
        """All of them."""
        fixed = [
            Operation("GET", "/v2", self.server, _describe("ServerMetadata")),
            Operation("GET", "/v2/health/live", self.health, _describe("ServerLive")),
            Operation("GET", "/v2/health/ready", self.health, _describe("ServerReady")),
        ]
        models = []
        for base, suffix in (("/v2/models/{model}", ""), ("/v2/models/{model}/versions/{version}", "Version")):
            models += [
                Operation("GET", base, self.metadata, _describe(f"Model{suffix}Metadata", base)),
                Operation("GET", f"{base}/ready", self.ready, _describe(f"Model{suffix}Ready", base)),
                Operation("POST", f"{base}/infer", self.infer, _describe(f"Model{suffix}Infer", base, body=True)),
            ]
        return fixed + models

    async def server(self, request: Request) -> Response:
        """What this server speaks."""
        return json_response(SERVER)

    async def health(self, request: Request) -> Response:
        """Clients look at the status, some at one of these words."""
        return json_response({"live": True, "ready": True})

    async def metadata(self, request: Request) -> Response:
        """As the replica describes its model."""
        return await self._pass(request, None)

    async def ready(self, request: Request) -> Response:
        """Whether a replica answers."""
        try:
            return await self._pass(request, READY_SECONDS)
        except Transient as error:
            return json_response({"name": request.path_params["model"], "ready": False, "error": error.detail}, 400)

    async def infer(self, request: Request) -> Response:
        """Tensors in, tensors out."""
        answer = await self._predictions.predict(request, request.path_params["model"], _replica_path(request))
        return Response(answer.body, answer.status, answer.headers)

    async def _pass(self, request: Request, seconds: float | None) -> Response:
        workspace = current_call().identity.workspace
        answer = await self._predictions.router.send(
            workspace, request.path_params["model"], "GET", _replica_path(request), request.headers, seconds=seconds
        )
        return Response(answer.body, answer.status, answer.headers)


def _replica_path(request: Request) -> str:
    return quote(request.url.path, safe="/")


def _describe(name: str, base: str = "", *, body: bool = False) -> Any:
    parameters = [documents.parameter("path", field, documents.NAME) for field in ("model", "version") if f"{{{field}}}" in base]

    def describe(_schemas: Schemas) -> dict[str, Any]:
        return documents.operation(
            "open-inference",
            name,
            name,
            description="Open Inference Protocol V2. A model is an endpoint of the workspace.",
            parameters=parameters,
            body={**documents.content("application/json", _OBJECT), "required": True} if body else None,
            answers={"200": documents.answer("As the protocol has it.", "application/json", _OBJECT)},
            problems=_ERROR,
        )

    return describe
