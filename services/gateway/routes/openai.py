"""`/v1/models` for OpenAI's clients, too: what they read stands beside the native fields (ADR 0016).

To them a model is an endpoint, since that is what can be asked.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from lepton.deployment.v1 import deployment_service_pb2, endpoint_pb2
from libs.errors import NotFound
from libs.rpc import Client
from libs.rpc.schema import Schema, Schemas
from services.gateway.messages import json_response
from services.gateway.operations import Handler, Operation

# More endpoints than a workspace has.
_MOST = 1000
_LIST, _GET = "/v1/models", "/v1/models/{name}"
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["model"]},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_LISTED = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"type": "string", "enum": ["list"]}, "data": {"type": "array", "items": _MODEL}},
}


class OpenAiModels:
    """Makes both of the native operations."""

    def __init__(self, deployment: Client) -> None:
        self._deployment = deployment

    def widen(self, operations: list[Operation]) -> list[Operation]:
        """All of them, these two with more in their answers."""
        return [self._widened(each) if each.method == "GET" else each for each in operations]

    def _widened(self, operation: Operation) -> Operation:
        native = operation.handle
        if operation.path == _LIST:
            return replace(
                operation, handle=self._lists(native), describe=_described(operation, lambda schema: {"allOf": [schema, _LISTED]})
            )
        if operation.path == _GET:
            both = _described(operation, lambda schema: {"anyOf": [{"allOf": [schema, _MODEL]}, _MODEL]})
            return replace(operation, handle=self._gets(native), describe=both)
        return operation

    def _lists(self, native: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            listed = orjson.loads((await native(request)).body)
            # These clients read one page.
            first = "page_token" not in request.query_params
            return json_response({**listed, "object": "list", "data": await self._served() if first else []})

        return handle

    def _gets(self, native: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                response = await native(request)
            except NotFound as error:
                return json_response(await self._endpoint(request.path_params["name"], error))
            model = orjson.loads(response.body)
            made = model.get("create_time")
            created = int(datetime.fromisoformat(made).timestamp()) if made else 0
            return json_response({**model, **_model(model["name"], created, model["workspace"])})

        return handle

    async def _served(self) -> list[dict[str, Any]]:
        request = deployment_service_pb2.ListEndpointsRequest(page_size=_MOST)
        return [_of(each) for each in (await self._deployment.ListEndpoints(request)).endpoints]

    async def _endpoint(self, name: str, error: NotFound) -> dict[str, Any]:
        try:
            return _of(await self._deployment.GetEndpoint(deployment_service_pb2.GetEndpointRequest(name=name)))
        except NotFound as other:
            raise error from other


def _of(endpoint: endpoint_pb2.Endpoint) -> dict[str, Any]:
    return _model(endpoint.name, endpoint.create_time.seconds, endpoint.workspace)


def _model(id: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": owner}


def _described(operation: Operation, widen: Callable[[Schema], Schema]) -> Callable[[Schemas], dict[str, Any]]:
    def describe(schemas: Schemas) -> dict[str, Any]:
        document = operation.describe(schemas)
        content = document["responses"]["200"]["content"]["application/json"]
        content["schema"] = widen(content["schema"])
        return document

    return describe
