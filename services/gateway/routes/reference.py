"""The API's own documents: /openapi.json, and /docs as one page that needs nothing else, since the machine may be offline."""

from collections.abc import Sequence
from html import escape
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from libs.rpc.schema import Schemas
from services.gateway import documents
from services.gateway.openapi import OpenApi
from services.gateway.operations import Operation

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#8889;--accent:#3b6fd4}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
nav a{margin-right:.8rem}a{color:var(--accent)}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#8881;padding:.7rem;overflow:auto;border-radius:6px}
details{border:1px solid var(--line);border-radius:6px;margin:.4rem 0;padding:.3rem .7rem}
summary{cursor:pointer}summary b{display:inline-block;width:4.2rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;border-top:1px solid var(--line);padding:.25rem .5rem}
"""


class Reference:
    """Handlers of the two routes."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._openapi = OpenApi([*operations, *self.operations()])

    def operations(self) -> list[Operation]:
        """Both of them."""
        return [
            Operation("GET", "/openapi.json", self.openapi, _describe("OpenApiDocument", "application/json", {"type": "object"})),
            Operation("GET", "/docs", self.docs, _describe("Docs", "text/html", {"type": "string"})),
        ]

    async def openapi(self, request: Request) -> Response:
        """OpenAPI 3.1."""
        return Response(self._openapi.document(), media_type="application/json", headers={"cache-control": "public, max-age=60"})

    async def docs(self, request: Request) -> Response:
        """For people."""
        page = render(orjson.loads(self._openapi.document()))
        headers = {"content-security-policy": _POLICY, "cache-control": "public, max-age=60"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def render(document: dict[str, Any]) -> str:
    """An OpenAPI document as HTML."""
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append(_operation(method, path, operation))
    links = "".join(f'<a href="#{tag}">{tag}</a>' for tag in by_tag)
    sections = "".join(f'<h2 id="{tag}">{tag}</h2>{"".join(items)}' for tag, items in by_tag.items())
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>'
        f'<p>{escape(document["info"]["description"])}</p><p><a href="/openapi.json">openapi.json</a></p>'
        f'<nav>{links}<a href="#schemas">schemas</a></nav>{sections}<h2 id="schemas">schemas</h2>{schemas}</body></html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{each['in']}</td><td>{_type(each['schema'])}</td>"
        f"<td>{escape(each.get('description') or each['schema'].get('description', ''))}</td></tr>"
        for each in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td>{status}</td><td>{escape(each.get('description', 'A problem.'))}</td><td>{_content(each)}</td></tr>"
        for status, each in operation["responses"].items()
    )
    body = operation.get("requestBody", {})
    example = next((kind["example"] for kind in body.get("content", {}).values() if "example" in kind), None)
    shown = f"<pre>{escape(orjson.dumps(example, option=orjson.OPT_INDENT_2).decode())}</pre>" if example else ""
    return (
        f'<details id="{operation["operationId"]}"><summary><b>{method.upper()}</b><code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary><p>{escape(operation.get('description', ''))}</p>"
        + (f"<table>{parameters}</table>" if parameters else "")
        + (f"<p>Body: {_content(body)}</p>{shown}" if body else "")
        + f"<table>{answers}</table></details>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' *' if field in required else ''}</td><td>{_type(each)}</td>"
        f"<td>{escape(each.get('description', ''))}</td></tr>"
        for field, each in schema.get("properties", {}).items()
    )
    summary = f"<summary><code>{name}</code> {escape(schema.get('description', ''))}</summary>"
    return f'<details id="schema-{name}">{summary}<table>{rows}</table></details>'


def _content(part: dict[str, Any]) -> str:
    return ", ".join(f"<code>{escape(kind)}</code> {_type(each.get('schema', {}))}" for kind, each in part.get("content", {}).items())


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = schema.get("type", "any")
    return escape(kind if isinstance(kind, str) else kind[0])


def _describe(name: str, media_type: str, schema: dict[str, Any]) -> Any:
    def describe(_schemas: Schemas) -> dict[str, Any]:
        document = documents.operation("reference", name, name, answers={"200": documents.answer("This.", media_type, schema)})
        return {**document, "security": []}

    return describe
