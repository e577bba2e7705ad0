"""What the REST API consists of: one operation a method and path, with what handles it and how it is documented."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libs.rpc.schema import Schemas

# Where a request's scope says which path it matched; for the names of spans.
TEMPLATE = "lepton.template"
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """`path` as Starlette takes it, e.g. "/v1/models/{name}/files/{path:path}"; `describe` gives the OpenAPI operation object."""

    method: str
    path: str
    handle: Handler
    describe: Callable[[Schemas], dict[str, Any]]

    @property
    def documented_path(self) -> str:
        """The path as OpenAPI has it."""
        return re.sub(r"\{(\w+):\w+\}", r"{\1}", self.path)


def routes_of(operations: Sequence[Operation]) -> list[Route]:
    """One route a path, so that a wrong method is answered with every right one."""
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handle
    return [Route(path, _dispatch(path, handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def _dispatch(path: str, handlers: dict[str, Handler]) -> Handler:
    async def dispatch(request: Request) -> Response:
        request.scope[TEMPLATE] = path
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return dispatch
