"""Predictions by endpoints of the workspace, and by listings of others."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.gateway import documents
from services.gateway.messages import query_values
from services.gateway.operations import Operation
from services.gateway.predictions import Predictions, relay

_INSTANCES = {
    "type": "object",
    "required": ["instances"],
    "properties": {
        "instances": {
            "type": "array",
            "maxItems": 10000,
            "items": {},
            "description": "Raw records, as the model's signature names their fields.",
        }
    },
}
_PREDICTIONS = {"type": "object", "required": ["predictions"], "properties": {"predictions": {"type": "array", "items": {}}}}
_EXAMPLE = {"instances": [{"radius_mean": 17.99, "texture_mean": 10.38}]}


class Endpoints:
    """Handlers of the two routes."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation("POST", "/v1/endpoints/{name}/predict", self.predict, lambda _schemas: _describe("endpoints", "Predict", "name")),
            Operation("POST", "/v1/listings/{slug}/invoke", self.invoke, lambda _schemas: _describe("listings", "Invoke", "slug")),
        ]

    async def predict(self, request: Request) -> Response:
        """Raw records in, predictions out."""
        query_values(request, {})
        return relay(await self._predictions.predict(request, request.path_params["name"], "/predict"))

    async def invoke(self, request: Request) -> Response:
        """The same, by somebody else's endpoint and at their price."""
        query_values(request, {})
        return relay(await self._predictions.invoke(request, request.path_params["slug"]))


def _describe(tag: str, name: str, field: str) -> dict[str, Any]:
    words = {
        "Predict": "Predicts from raw records. Waits up to 30 s for the first replica of an endpoint that starts.",
        "Invoke": "Predicts by a listing that the workspace subscribes to; each row answered is charged at the price agreed to.",
    }
    return documents.operation(
        tag,
        name,
        name,
        description=words[name],
        parameters=[documents.parameter("path", field, documents.NAME), documents.IDEMPOTENCY_KEY],
        body={**documents.content("application/json", _INSTANCES, example=_EXAMPLE), "required": True},
        answers={"200": documents.answer("A prediction a record, in their order.", "application/json", _PREDICTIONS)},
    )
