"""A request, a reply, and how no is said in each path's own shape. Knows no socket and no model."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.errors import AppError
from libs.errors.openai import openai_document, openai_status
from services.deployment.replica.problems import JSON, PROBLEM, dump, problem, protocol_error
from services.deployment.replica.texts import Stream

_log = logging.getLogger("lepton.replica")


@dataclass(slots=True)
class Request:
    """One call. `headers` by name in lower case; `received`: when its head was, `deadline`: when its caller leaves, in the loop's time."""

    method: bytes = b""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    received: float = 0.0
    deadline: float = math.inf


class Reply(NamedTuple):
    """`headers` as lines; length and connection are added by who sends it. A stream's parts come after `body`."""

    status: int
    body: bytes
    headers: bytes = JSON
    stream: Stream | None = None


Answer = Callable[[Reply], None]


def sayable(error: Exception) -> AppError:
    """One that is not meant for callers is logged, and named so."""
    if isinstance(error, AppError):
        return error
    _log.error("request_failed", exc_info=error)
    return AppError("the model could not answer; the replica's log says why")


def failed(request: Request, error: Exception) -> Reply:
    """What a caller hears of an error."""
    error = sayable(error)
    headers = JSON
    if request.path == "/v2" or request.path.startswith("/v2/"):
        status, body = protocol_error(error)
    elif request.path.startswith("/openai/"):
        status, body = openai_status(error), dump(openai_document(error))
    else:
        (status, body), headers = problem(error), PROBLEM
    if "retry_after" in error.meta:
        headers += b"retry-after: %d\r\n" % error.meta["retry_after"]
    return Reply(status, body, headers)
