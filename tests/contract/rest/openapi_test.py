"""The REST API is the one that clients were written against, and its document is one that tools accept."""

import re
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from tests.contract.rest.openapi import SNAPSHOT, document, normalised, operations


@pytest.fixture
async def api() -> dict[str, Any]:
    return await document()


def test_snapshot(api: dict[str, Any]) -> None:
    assert normalised(api).splitlines() == SNAPSHOT.read_text().splitlines(), (
        "the REST API has changed; when that was meant: python -m tests.contract.rest.openapi"
    )


def test_the_document_is_valid(api: dict[str, Any]) -> None:
    assert api["openapi"] == "3.1.0"
    loaded = schemathesis.openapi.from_dict(api)
    loaded.validate()
    assert all(operation.ok() for operation in loaded.get_all_operations())


def test_every_schema_is_a_schema(api: dict[str, Any]) -> None:
    inline = [
        content["schema"]
        for _, _, operation in operations(api)
        for part in (operation.get("requestBody", {}), *operation["responses"].values())
        for content in part.get("content", {}).values()
    ]
    inline += [parameter["schema"] for _, _, operation in operations(api) for parameter in operation.get("parameters", ())]
    for schema in [*inline, *api["components"]["schemas"].values()]:
        # With every reference: the components lie where the references say.
        jsonschema_rs.validator_for({**schema, "components": api["components"]})


def test_operations_are_named_once_and_answer_problems(api: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(api)]
    assert len(names) == len(set(names)) > 60
    for _, path, operation in operations(api):
        assert "default" in operation["responses"], path
        assert any(status.startswith("2") for status in operation["responses"])
        assert re.fullmatch(r"(/[a-z0-9._-]+|/\{[a-z_]+\})+", path)
        assert all(schema["in"] != "query" or not schema.get("required") for schema in operation.get("parameters", ()))
