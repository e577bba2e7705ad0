"""Errors in the shape that OpenAI's clients read."""

from typing import Any

from libs.errors.catalogue import CATALOGUE
from libs.errors.errors import AppError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_status(error: AppError) -> int:
    """Never 409, which these clients send again."""
    status = CATALOGUE[error.code].http
    return 400 if status in (409, 422) else status


def openai_document(error: AppError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, all four always there."""
    status = openai_status(error)
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    param = error.errors[0].field if error.errors and error.code != "not_found" else None
    code = "model_not_found" if error.code == "not_found" else error.code
    return {"error": {"message": error.detail, "type": kind, "param": param, "code": code}}
