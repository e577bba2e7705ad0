"""The exceptions that leave this package, and how a problem+json (RFC 9457) becomes one. Knows nothing of HTTP libraries."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STANDARD = {"type", "title", "status", "detail", "instance", "code", "errors", "trace_id", "retryable", "meta"}
_ROW = re.compile(r"instances\[(\d+)\]")


class LeptonError(Exception):
    """Everything that this package raises on purpose.

        LeptonError
        ├── InvalidInput (ValueError)     refused here, nothing was sent
        │   └── NotFitted                 predict before fit
        ├── ConnectionFailed              nobody answers at the address, or it is not Lepton
        ├── Timeout (TimeoutError)        waited as long as was allowed
        ├── JobFailed                     a training job failed or was cancelled; `.job`, `.problem`
        └── APIError                      the platform refused; `.status .code .detail .errors .trace_id .retryable .raw`
            ├── BadRequest                400, 405
            ├── InvalidData               413, 415, 422: a file, a specification or a record
            ├── Unauthenticated           401, or no key at all
            ├── Forbidden                 403
            ├── QuotaExceeded             403 with code "quota_exceeded"; `.limit .used .remaining .plans`
            ├── NotFound                  404, also for what belongs to another workspace
            ├── Conflict                  409
            ├── RateLimited               429
            └── Unavailable               502, 503, 504, 507

    `str(error)` repeats what the platform advises: the sentence, each violation with its place and suggestions, the trace id.
    """


class InvalidInput(LeptonError, ValueError):
    """What was passed cannot be sent; the message says what would be right. `hint` holds that part alone where there is one."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class NotFitted(InvalidInput):
    """`predict` or `score` was called before `fit`."""


class ConnectionFailed(LeptonError):
    """Nobody answers at `url`, or something else than Lepton does."""

    def __init__(self, url: str, reason: str, hint: str = "is the platform running? start it with `lepton up`, or set LEPTON_URL") -> None:
        super().__init__(f"cannot reach Lepton at {url} ({reason}); {hint}")
        self.url = url
        self.reason = reason
        self.hint = hint


class Timeout(LeptonError, TimeoutError):
    """It took longer than was allowed. What was begun on the platform goes on."""


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong: where ("training.learning_rate", "line 17"), what, and accepted values, nearest first."""

    field: str
    message: str
    suggestions: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field and not self.message.startswith(f"{self.field}:") else ""
        missing = [option for option in self.suggestions if option not in self.message]
        return f"{where}{self.message}" + (f" (accepted: {', '.join(missing)})" if missing else "")


class JobFailed(LeptonError):
    """A training job ended without a model, or a batch prediction without a dataset version. `job` is the job, `problem` what ended it
    (None when it was cancelled)."""

    def __init__(self, job: Any, kind: str = "training job", advice: str = "read its output with `lepton train logs {id}`") -> None:
        self.job = job
        self.problem = job.error
        what = "was cancelled" if job.state == "cancelled" else "failed"
        lines = [f"{kind} {job.id} {what}: {self.problem.detail if self.problem else job.reason or 'no reason was given'}"]
        if self.problem:
            lines += [f"  - {violation}" for violation in _telling(self.problem.detail, self.problem.errors)]
        trace = getattr(job, "trace_id", "")
        self.advice = advice.format(id=job.id)
        lines.append(f"  {self.advice}" + (f"; trace {trace}" if trace else ""))
        super().__init__("\n".join(lines))


class APIError(LeptonError):
    """The platform refused, or made a mistake.

    status: HTTP status. code: constant for programs, e.g. "name_taken". detail: the sentence for people. errors: every violation.
    trace_id: for `lepton trace`. retryable: the same again may succeed. raw: the whole problem document.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str = "",
        title: str = "",
        errors: Sequence[Violation] = (),
        trace_id: str = "",
        retryable: bool = False,
        raw: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.title = title
        self.errors = tuple(errors)
        self.trace_id = trace_id
        self.retryable = retryable
        self.raw: Mapping[str, Any] = dict(raw or {})

    @property
    def meta(self) -> dict[str, Any]:
        """Facts for programs beside the standard members, e.g. {"limit": 5, "used": 5}."""
        nested = self.raw.get("meta")
        extensions = {key: value for key, value in self.raw.items() if key not in _STANDARD}
        return {**extensions, **(nested if isinstance(nested, Mapping) else {})}

    def __str__(self) -> str:
        lines = [self.detail, *(f"  - {violation}" for violation in _telling(self.detail, self.errors))]
        if self.trace_id:
            lines.append(f"  trace {self.trace_id}")
        return "\n".join(lines)


class BadRequest(APIError):
    """The request is not one that the platform knows."""


class InvalidData(APIError):
    """A file, a specification or a record does not fit."""


class Unauthenticated(APIError):
    """The key is missing, unknown or revoked."""


class Forbidden(APIError):
    """The key's role does not allow it, or a listing is not subscribed to."""


class QuotaExceeded(APIError):
    """The plan's quota is used up."""

    @property
    def limit(self) -> int | None:
        """How much the plan allows."""
        return self.meta.get("limit")

    @property
    def used(self) -> int | None:
        """How much is used."""
        return self.meta.get("used")

    @property
    def remaining(self) -> int | None:
        """How much is left."""
        return self.meta.get("remaining")

    @property
    def plans(self) -> tuple[str, ...]:
        """Plans that have more."""
        plans = self.meta.get("plans")
        return tuple(str(plan) for plan in plans) if isinstance(plans, list) else ()


class NotFound(APIError):
    """It does not exist for this workspace."""


class Conflict(APIError):
    """A name is taken, or the state of things does not allow it."""


class RateLimited(APIError):
    """Too many requests, also after waiting."""


class Unavailable(APIError):
    """A part of the platform is away, also after trying again."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: BadRequest,
    409: Conflict,
    413: InvalidData,
    415: InvalidData,
    422: InvalidData,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: Unavailable,
}


def error_from_problem(status: int, problem: Mapping[str, Any], *, trace_id: str = "", fallback: str = "") -> APIError:
    """The exception for a problem document. Members of a wrong type count as missing; `fallback` is the detail where there is none."""
    code = _text(problem.get("code"))
    kind = QuotaExceeded if code == "quota_exceeded" else _BY_STATUS.get(status, APIError)
    return kind(
        _text(problem.get("detail")) or _text(problem.get("title")) or fallback or f"the platform answered {status}",
        status=status,
        code=code,
        title=_text(problem.get("title")),
        errors=violations_from(problem.get("errors")),
        trace_id=_text(problem.get("trace_id")) or trace_id,
        retryable=problem.get("retryable") is True,
        raw=problem,
    )


def violations_from(items: Any) -> tuple[Violation, ...]:
    """Violations of a problem's `errors`, leaving out what is not one."""
    found = []
    for item in items if isinstance(items, list) else []:
        if isinstance(item, Mapping):
            suggestions = item.get("suggestions")
            texts = tuple(str(option) for option in suggestions) if isinstance(suggestions, list) else ()
            found.append(Violation(_text(item.get("field")), _text(item.get("message")), texts))
    return tuple(found)


def shifted(error: APIError, rows: int) -> APIError:
    """The same error with `instances[i]` counted from the caller's first row, `rows` above the chunk's."""

    def move(text: str) -> str:
        return _ROW.sub(lambda match: f"instances[{int(match[1]) + rows}]", text)

    error.detail = move(error.detail)
    error.errors = tuple(Violation(move(v.field), move(v.message), v.suggestions) for v in error.errors)
    return error


def _telling(detail: str, errors: Sequence[Violation]) -> list[Violation]:
    """The violations that say more than the detail does; a single one usually is the detail."""
    if len(errors) == 1 and errors[0].message in detail and all(option in detail for option in errors[0].suggestions):
        return []
    return list(errors)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
