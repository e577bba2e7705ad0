"""The OpenAPI 3.1 document, derived from the operations; made when it is first asked for and kept as bytes."""

from collections.abc import Sequence
from typing import Any

import orjson

from libs.errors import CATALOGUE
from libs.rpc.schema import Schemas, read_comments
from services.gateway.operations import Operation

VERSION = "0.1.0"
_DESCRIPTION = (
    "Data in; a trained, deployed, metered, sellable model out. Every request carries an API key as `Authorization: Bearer KEY`. "
    "Lists are read page by page: give `next_page_token` as `page_token` until it is empty. Errors are RFC 9457 problems that say what is "
    "wrong, where, and what would be right; the header `x-lepton-trace-id` names each request's trace."
)


class OpenApi:
    """The document of these operations."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._document: bytes | None = None

    def document(self) -> bytes:
        """JSON."""
        if self._document is None:
            self._document = orjson.dumps(build(self._operations))
        return self._document


def build(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document as plain Python."""
    schemas = Schemas(read_comments())
    paths: dict[str, dict[str, Any]] = {}
    for operation in sorted(operations, key=lambda each: each.documented_path):
        paths.setdefault(operation.documented_path, {})[operation.method.lower()] = operation.describe(schemas)
    tags = sorted({tag for path in paths.values() for each in path.values() for tag in each["tags"]})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lepton",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            # Not "Problem": that is what failed resources hold, a message of the contracts.
            "schemas": {**schemas.components(), "ProblemDocument": _PROBLEM, "ProblemViolation": _VIOLATION},
            "responses": {
                "Problem": {
                    "description": "What is wrong, where, and what would be right.",
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
                }
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key. `x-api-key: KEY` is taken, too."}
            },
        },
    }


_VIOLATION = {
    "type": "object",
    "description": "One thing that is wrong.",
    "required": ["field", "message", "suggestions"],
    "properties": {
        "field": {"type": "string", "description": 'Where: "training.learning_rate", "line 17".'},
        "message": {"type": "string"},
        "suggestions": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Values that would have been accepted, nearest first.",
        },
    },
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. Further members are facts for programs, e.g. `limit`, `used` and `plans` of quota_exceeded.",
    "required": ["type", "title", "status", "detail", "instance", "code", "errors", "trace_id", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "enum": sorted(CATALOGUE)},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/ProblemViolation"}},
        "trace_id": {"type": "string"},
        "retryable": {"type": "boolean", "description": "The same request may succeed later."},
    },
    "additionalProperties": True,
}
