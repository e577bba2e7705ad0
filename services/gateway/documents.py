"""Pieces of the OpenAPI document that several operations share."""

from collections.abc import Mapping
from typing import Any

Document = dict[str, Any]

PROBLEM = {"$ref": "#/components/responses/Problem"}


def operation(
    tag: str,
    name: str,
    summary: str,
    *,
    parameters: list[Document] | None = None,
    body: Document | None = None,
    answers: Mapping[str, Document],
    description: str = "",
    problems: Document | None = None,
) -> Document:
    """An OpenAPI operation object; every answer that is not listed is a problem."""
    document: Document = {"tags": [tag], "operationId": name, "summary": summary}
    if description:
        document["description"] = description
    if parameters:
        document["parameters"] = parameters
    if body is not None:
        document["requestBody"] = body
    document["responses"] = {**answers, "default": problems or PROBLEM}
    return document


def parameter(place: str, name: str, schema: Document, description: str = "", *, required: bool | None = None) -> Document:
    """`place`: path, query or header."""
    document: Document = {"name": name, "in": place, "required": place == "path" if required is None else required, "schema": schema}
    if description:
        document["description"] = description
    return document


def content(media_type: str, schema: Document, **more: Any) -> Document:
    """A body of one type."""
    return {"content": {media_type: {"schema": schema, **more}}}


def answer(description: str, media_type: str = "", schema: Document | None = None) -> Document:
    """A response object."""
    document: Document = {"description": description}
    if media_type:
        document["content"] = {media_type: {"schema": schema or {}}}
    return document


IDEMPOTENCY_KEY = parameter(
    "header",
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "The same key again gives the same answer and does nothing twice.",
    required=False,
)
NAME = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
