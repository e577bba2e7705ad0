"""The application: every operation as a route, and what wraps them all."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from libs.errors import AppError, NotFound
from services.gateway.auth import Authentication, Authenticator
from services.gateway.limits import RateLimits
from services.gateway.operations import Operation, routes_of
from services.gateway.problems import Problems
from services.gateway.tracing import Tracing


def build_app(operations: Sequence[Operation], authenticator: Authenticator, rates: RateLimits, problems: Problems) -> FastAPI:
    """Tracing, then authentication and rate limits, then the routes."""
    # Its own telemetry would begin a second trace beside ours.
    silent = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)
    app = FastAPI(title="Lepton", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, telemetry=silent)
    app.router.routes.extend(routes_of(operations))

    async def app_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return problems.response(request.scope, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            words = f"{request.url.path[:200]} does not take {request.method[:20]}; it takes {allowed}"
            return problems.response(request.scope, AppError(words, code="method_not_allowed"), headers={"allow": allowed})
        return problems.response(request.scope, NotFound(f"there is nothing at {request.url.path[:200]}; /docs lists what there is"))

    app.add_exception_handler(AppError, app_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(Authentication, authenticator=authenticator, rates=rates, problems=problems)
    # Added last, so outermost.
    app.add_middleware(Tracing, problems=problems)
    return app
