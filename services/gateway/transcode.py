"""REST from the contracts: every method with google.api.http becomes an operation.

Knows descriptors; a field's bounds, a method's role and an error's words are the services' affair.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from libs.errors import Invalid, Violation
from libs.rpc import Client, validate
from libs.rpc.json_codec import dump, from_text, parse
from libs.rpc.names import descriptor_of
from libs.rpc.schema import Schemas, must_be_sent
from services.gateway import documents
from services.gateway.examples import EXAMPLES
from services.gateway.messages import idempotency_key, json_response, query_values, read_json
from services.gateway.operations import Operation
from services.gateway.settings import Limits

# Long work: the answer is a resource to watch.
_ACCEPTED = {"CreateBatchPrediction", "CreateTrainingJob", "CreateTransform"}
# Where the thing in an answer can be found again.
_LOCATIONS = {
    "lepton.accounts.v1.CreateWorkspaceResponse": "/v1/workspaces/{workspace.name}",
    "lepton.accounts.v1.Invoice": "/v1/invoices/{number}",
    "lepton.data.v1.Dataset": "/v1/datasets/{name}",
    "lepton.data.v1.DatasetVersion": "/v1/datasets/{dataset}/versions/{number}",
    "lepton.deployment.v1.BatchPrediction": "/v1/batch-predictions/{id}",
    "lepton.deployment.v1.Endpoint": "/v1/endpoints/{name}",
    "lepton.marketplace.v1.Listing": "/v1/listings/{slug}",
    "lepton.training.v1.TrainingJob": "/v1/training-jobs/{id}",
}
Hook = Callable[[], None]


@dataclass(frozen=True)
class Rule:
    """A method's place in REST."""

    verb: str
    path: str
    has_body: bool

    @property
    def path_fields(self) -> list[str]:
        """Fields of the request that stand in the path."""
        return re.findall(r"\{(\w+)\}", self.path)


def rule_of(method: MethodDescriptor) -> Rule | None:
    """None for a method that REST does not offer."""
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return None
    http = options.Extensions[annotations_pb2.http]
    verb = http.WhichOneof("pattern")
    return Rule(verb.upper(), getattr(http, verb), http.body == "*")


def operations_of(service: ServiceDescriptor, client: Client, limits: Limits, after: dict[str, Hook] | None = None) -> list[Operation]:
    """An operation for each method of the service that has a rule; `after` are hooks by method, run when it has succeeded."""
    found = []
    for method in service.methods:
        rule = rule_of(method)
        if rule is not None:
            transcoded = _Transcoded(method, rule, client, limits, (after or {}).get(method.name))
            found.append(Operation(rule.verb, rule.path, transcoded.handle, transcoded.describe))
    return found


class _Transcoded:
    def __init__(self, method: MethodDescriptor, rule: Rule, client: Client, limits: Limits, after: Hook | None) -> None:
        self._method = method
        self._rule = rule
        self._client = client
        self._limits = limits
        self._after = after
        self._input = method.input_type
        self._request_type = message_factory.GetMessageClass(self._input)
        self._path_fields = [self._input.fields_by_name[name] for name in rule.path_fields]
        self._query_fields = {} if rule.has_body else {f.name: f for f in self._input.fields if f.name not in rule.path_fields}
        self._query_names = {name: field.is_repeated for name, field in self._query_fields.items()}
        self._location = _LOCATIONS.get(method.output_type.full_name, "") if rule.verb == "POST" else ""

    async def handle(self, request: Request) -> Response:
        """Request → message → RPC → answer."""
        key = idempotency_key(request) if self._rule.verb == "POST" else ""
        message = parse(self._request_type, await self._read(request))
        validate(message)
        answer = await getattr(self._client, self._method.name)(message, idempotency_key=key)
        if self._after is not None:
            self._after()
        return self._respond(answer)

    async def _read(self, request: Request) -> dict[str, Any]:
        query = query_values(request, self._query_names)
        values: dict[str, Any] = {name: from_text(self._query_fields[name], texts) for name, texts in query.items()}
        if self._rule.has_body:
            values = await read_json(request, self._limits)
        for field in self._path_fields:
            value = from_text(field, [request.path_params[field.name]])
            if values.get(field.name, value) != value:
                raise Invalid.of([Violation(field.name, f"is given by the path as {value}; leave it out of the body")])
            values[field.name] = value
        return values

    def _respond(self, answer: Message) -> Response:
        if not descriptor_of(answer).fields:
            return Response(status_code=204)
        headers = {"location": _fill(self._location, answer)} if self._location else {}
        return json_response(dump(answer), self._status, headers)

    @property
    def _status(self) -> int:
        if self._method.name in _ACCEPTED:
            return 202
        return 201 if self._rule.verb == "POST" and self._method.name.startswith("Create") else 200

    def describe(self, schemas: Schemas) -> dict[str, Any]:
        """The OpenAPI operation object."""
        output = self._method.output_type
        comment = schemas.comment(self._method.full_name)
        parameters = [documents.parameter("path", field.name, _path_schema(schemas.field(field))) for field in self._path_fields]
        parameters += [documents.parameter("query", name, schemas.field(field)) for name, field in self._query_fields.items()]
        if self._rule.verb == "POST":
            parameters.append(documents.IDEMPOTENCY_KEY)
        body = None
        if self._rule.has_body:
            schema = schemas.sent(self._input, without=self._rule.path_fields)
            example = EXAMPLES.get(self._method.name)
            body = documents.content("application/json", schema, **({"example": example} if example else {}))
            body["required"] = any(must_be_sent(f) for f in self._input.fields if f.name not in self._rule.path_fields)
        if output.fields:
            done = documents.answer("Done.", "application/json", schemas.received(output))
            if self._location:
                done["headers"] = {"Location": {"description": "Where it can be found.", "schema": {"type": "string"}}}
            answers = {str(self._status): done}
        else:
            answers = {"204": documents.answer("Done.")}
        return documents.operation(
            self._rule.path.split("/")[2],
            self._method.name,
            _words(self._method.name),
            parameters=parameters,
            body=body,
            answers=answers,
            description=comment,
        )


def _fill(template: str, message: Message) -> str:
    def value(match: re.Match[str]) -> str:
        found: Any = message
        for name in match[1].split("."):
            found = getattr(found, name)
        return quote(str(found), safe="")

    return re.sub(r"\{([\w.]+)\}", value, template)


def _path_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """What stands in a path is never empty."""
    return {**schema, "minLength": 1} if schema.get("type") == "string" else schema


def _words(name: str) -> str:
    """CreateTrainingJob → "Create training job"."""
    return re.sub(r"(?<!^)([A-Z])", lambda match: " " + match[1].lower(), name)
