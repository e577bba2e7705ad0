"""Whether the process lives, and whether everything behind it answers."""

import asyncio
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

    def __init__(self, peers: Peers, draining: asyncio.Event) -> None:
        self._peers, self._draining = peers, draining

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation(
                "GET",
                "/healthz",
                self.live,
                _describe("Live", "Whether the gateway takes requests: what a balancer before several of them asks.", "status"),
            ),
            Operation(
                "GET", "/readyz", self.ready, _describe("Ready", "Whether the gateway and every service behind it answer.", "services")
            ),
        ]

    async def live(self, request: Request) -> Response:
        """503 from a gateway that is about to stop: it still answers whoever asks, but the next request had better go elsewhere."""
        draining = self._draining.is_set()
        return json_response({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    async def ready(self, request: Request) -> Response:
        """503 names what is missing."""
        services = await self._peers.ready()
        ready = all(services.values()) and not self._draining.is_set()
        return json_response({"status": "ok" if ready else "unavailable", "services": services}, 200 if ready else 503)


def _describe(name: str, words: str, field: str) -> Any:
    properties: dict[str, Any] = {"status": {"type": "string"}}
    if field == "services":
        properties["services"] = {"type": "object", "additionalProperties": {"type": "boolean"}}
    schema = {"type": "object", "required": list(properties), "properties": properties}

    def describe(_schemas: Schemas) -> dict[str, Any]:
        answers = {status: documents.answer(word, "application/json", schema) for status, word in (("200", "Yes."), ("503", "No."))}
        return {**documents.operation("health", name, name, description=words, answers=answers), "security": []}

    return describe
