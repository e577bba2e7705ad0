"""Whether the process lives, and whether everything behind it answers."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from libs.rpc.schema import Schemas
from services.gateway import documents
from services.gateway.messages import json_response
from services.gateway.operations import Operation
from services.gateway.peers import Peers


class Health:
    """Handlers of the two routes."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation("GET", "/healthz", self.live, _describe("Live", "Whether the gateway runs.", "status")),
            Operation(
                "GET", "/readyz", self.ready, _describe("Ready", "Whether the gateway and every service behind it answer.", "services")
            ),
        ]

    async def live(self, request: Request) -> Response:
        """It does."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """503 names what is missing."""
        services = await self._peers.ready()
        ready = all(services.values())
        return json_response({"status": "ok" if ready else "unavailable", "services": services}, 200 if ready else 503)


def _describe(name: str, words: str, field: str) -> Any:
    properties: dict[str, Any] = {"status": {"type": "string"}}
    if field == "services":
        properties["services"] = {"type": "object", "additionalProperties": {"type": "boolean"}}
    schema = {"type": "object", "required": list(properties), "properties": properties}

    def describe(_schemas: Schemas) -> dict[str, Any]:
        answers = {"200": documents.answer("Yes.", "application/json", schema)}
        if field == "services":
            answers["503"] = documents.answer("No.", "application/json", schema)
        return {**documents.operation("health", name, name, description=words, answers=answers), "security": []}

    return describe
