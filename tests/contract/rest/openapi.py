"""The REST API as its document says it, in a form that people can compare: a line an operation, a line a schema.

`python -m tests.contract.rest.openapi` writes openapi.txt anew, when the API was changed on purpose.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from libs.rpc import IdentitySettings, PeerSettings, generate_key
from libs.storage import InMemoryArtifactStore
from services.gateway.main import ControlPlane
from services.gateway.settings import GatewaySettings

SNAPSHOT = Path(__file__).with_name("openapi.txt")


async def document() -> dict[str, Any]:
    """/openapi.json of a gateway that nothing stands behind."""
    private_key, _ = generate_key()
    peers = PeerSettings(**dict.fromkeys(PeerSettings.model_fields, "unix:/nowhere"))
    settings = GatewaySettings(peers=peers, identity=IdentitySettings(private_key=SecretStr(private_key)))
    gateway = ControlPlane(settings, datasets=InMemoryArtifactStore(), models=InMemoryArtifactStore())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as client:
        answer: dict[str, Any] = (await client.get("/openapi.json")).json()
    return answer


def normalised(api: dict[str, Any]) -> str:
    """What a client can break on: paths, methods, parameters, names and types of fields; no words, no bounds."""
    operations = [
        _operation(method, path, operation)
        for path, methods in sorted(api["paths"].items())
        for method, operation in sorted(methods.items())
    ]
    schemas = [f"{name}: {_fields(schema)}".rstrip() for name, schema in sorted(api["components"]["schemas"].items())]
    return "\n".join([*operations, "", *schemas, ""])


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    query = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
    asked = f"?{'&'.join(query)}" if query else ""
    body = _content(operation.get("requestBody", {}))
    answers = [f"{status} {_content(answer)}".rstrip() for status, answer in operation["responses"].items()]
    return " ".join(part for part in (method.upper(), path + asked, body, "->", ", ".join(answers)) if part)


def _content(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return str(part["$ref"]).rpartition("/")[2]
    kinds = [_type(each.get("schema", {})) if kind == "application/json" else kind for kind, each in part.get("content", {}).items()]
    return "|".join(kinds)


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    return ", ".join(
        f"{name}{'*' if name in required else ''} {_type(each)}" for name, each in sorted(schema.get("properties", {}).items())
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for combination in ("oneOf", "anyOf", "allOf"):
        if combination in schema:
            return "|".join(_type(each) for each in schema[combination])
    if "enum" in schema:
        return f"({'|'.join(map(str, schema['enum']))})"
    if schema.get("type") == "array":
        return f"[{_type(schema.get('items', {}))}]"
    if "properties" in schema:
        return f"{{{_fields(schema)}}}"
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
        return f"{{*: {_type(schema['additionalProperties'])}}}"
    kind = schema.get("type", "any")
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation object) of each."""
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


if __name__ == "__main__":
    SNAPSHOT.write_text(normalised(asyncio.run(document())))
