"""What the inference path answers, for the API's documentation: this process answers none of it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from libs.errors import NotFound
from libs.rpc.schema import Schemas
from services.gateway import documents
from services.gateway.operations import Operation
from services.gateway.problems import OPENAI_PATHS

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
_OBJECT = {"type": "object"}
_ASKED = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string", "description": "An endpoint's name."}}}
_TEXTS = {
    "CreateChatCompletion": "Goes on with a conversation",
    "CreateCompletion": "Goes on with a text",
    "CreateEmbedding": "Gives the vectors of texts",
}
_OPENAI_ERROR = {
    "description": "An error as OpenAI's clients read it.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": "string"},
                        },
                    }
                },
            }
        }
    },
}
_ERROR = {
    "description": "An error in the protocol's form.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}}},
}


def operations() -> list[Operation]:
    """All of them."""
    fixed = [
        Operation("POST", "/v1/endpoints/{name}/predict", _elsewhere, lambda _schemas: _describe_rows("endpoints", "Predict", "name")),
        Operation("POST", "/v1/listings/{slug}/invoke", _elsewhere, lambda _schemas: _describe_rows("listings", "Invoke", "slug")),
        *(Operation("POST", path, _elsewhere, _describe_texts(name)) for path, name in zip(OPENAI_PATHS, _TEXTS, strict=True)),
        Operation("GET", "/v2", _elsewhere, _describe("ServerMetadata")),
        Operation("GET", "/v2/health/live", _elsewhere, _describe("ServerLive")),
        Operation("GET", "/v2/health/ready", _elsewhere, _describe("ServerReady")),
    ]
    models = []
    for base, suffix in (("/v2/models/{model}", ""), ("/v2/models/{model}/versions/{version}", "Version")):
        models += [
            Operation("GET", base, _elsewhere, _describe(f"Model{suffix}Metadata", base)),
            Operation("GET", f"{base}/ready", _elsewhere, _describe(f"Model{suffix}Ready", base)),
            Operation("POST", f"{base}/infer", _elsewhere, _describe(f"Model{suffix}Infer", base, body=True)),
            Operation("POST", f"{base}/generate", _elsewhere, _describe(f"Model{suffix}Generate", base, body=True)),
            Operation("POST", f"{base}/generate_stream", _elsewhere, _describe(f"Model{suffix}GenerateStream", base, body=True)),
        ]
    return fixed + models


async def _elsewhere(request: Request) -> Response:
    raise NotFound("this is the control plane; predictions are answered at the platform's public address")


def _describe(name: str, base: str = "", *, body: bool = False) -> Any:
    parameters = [documents.parameter("path", field, documents.NAME) for field in ("model", "version") if f"{{{field}}}" in base]

    streamed = ("text/event-stream", {"type": "string"}) if name.endswith("Stream") else ("application/json", _OBJECT)

    def describe(_schemas: Schemas) -> dict[str, Any]:
        return documents.operation(
            "open-inference",
            name,
            name,
            description="Open Inference Protocol V2. A model is an endpoint of the workspace.",
            parameters=parameters,
            body={**documents.content("application/json", _OBJECT), "required": True} if body else None,
            answers={"200": documents.answer("As the protocol has it.", *streamed)},
            problems=_ERROR,
        )

    return describe


def _describe_texts(name: str) -> Any:
    words = f"{_TEXTS[name]}, as OpenAI's API does. `model` is an endpoint of the workspace."
    answers = {"200": documents.answer("As that API has it.", "application/json", _OBJECT)}
    if name != "CreateEmbedding":
        answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    body = {**documents.content("application/json", _ASKED), "required": True}

    def describe(_schemas: Schemas) -> dict[str, Any]:
        return documents.operation("openai", name, name, description=words, body=body, answers=answers, problems=_OPENAI_ERROR)

    return describe


def _describe_rows(tag: str, name: str, field: str) -> dict[str, Any]:
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
