"""The exceptions that handlers raise and edges translate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from libs.errors.catalogue import CATALOGUE, Entry


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong: where (`training.learning_rate`, `line 17`), what would be right, and accepted values nearest first."""

    field: str
    message: str
    suggestions: tuple[str, ...] = ()


class AppError(Exception):
    """Something went wrong that the caller should hear of.

    `code` is a key of the catalogue; `detail` one sentence that says what is wrong and what would be right; `errors` every single
    violation; `meta` JSON-able facts for programs. Nothing in it may be secret.

        AppError
        ├── Invalid            400 (or another code of the 4xx kind, by `code`)
        ├── Unauthenticated    401
        ├── Forbidden          403
        ├── QuotaExceeded      403
        ├── NotFound           404, also for what belongs to another workspace
        ├── Conflict           409
        ├── Transient          503; a consumer tries again
        └── Poison             500; a consumer puts the message aside
    """

    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[Violation] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.code = code or self.default_code
        if self.code not in CATALOGUE:
            raise KeyError(f"error code {self.code!r} is not in libs/errors/catalogue.py")
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.meta = dict(meta or {})

    @property
    def entry(self) -> Entry:
        """What the code means to each transport."""
        return CATALOGUE[self.code]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is its reverse."""
        errors = [{"field": v.field, "message": v.message, "suggestions": list(v.suggestions)} for v in self.errors]
        return {"code": self.code, "detail": self.detail, "errors": errors, "meta": self.meta}

    @staticmethod
    def from_dict(problem: Mapping[str, Any]) -> "AppError":
        """An error of the class that the code belongs to; a code from a newer catalogue becomes "internal"."""
        code = problem["code"] if problem["code"] in CATALOGUE else "internal"
        errors = [Violation(v["field"], v["message"], tuple(v.get("suggestions", ()))) for v in problem.get("errors", ())]
        return _class_of(code)(problem["detail"], code=code, errors=errors, meta=problem.get("meta"))

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Invalid(AppError):
    """The request or its data is wrong; the same again will be wrong again."""

    default_code = "invalid_request"

    @classmethod
    def of(cls, errors: Sequence[Violation], *, code: str | None = None) -> "Invalid":
        """From at least one violation; the first one (and how many more) becomes the detail."""
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        first = errors[0]
        where = f"{first.field}: " if first.field else ""
        return cls(f"{where}{first.message}{more}", code=code, errors=errors)


class Unauthenticated(AppError):
    """Nobody known is calling."""

    default_code = "unauthenticated"


class Forbidden(AppError):
    """The caller is known and may not."""

    default_code = "forbidden"


class QuotaExceeded(AppError):
    """The plan's quota does not allow it; `meta` has metric, limit, used, remaining and the plans that have more."""

    default_code = "quota_exceeded"


class NotFound(AppError):
    """It does not exist for this caller."""

    default_code = "not_found"

    @classmethod
    def of(cls, kind: str, name: str, options: Iterable[str] = ()) -> "NotFound":
        """`kind` "dataset", `name` as asked for, `options` the names that there are: near ones are suggested."""
        suggestions = near(name, options)
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
        return cls(
            f"there is no {kind} '{name}' in this workspace{hint}",
            errors=[Violation(kind, f"'{name}' does not exist", tuple(suggestions))] if suggestions else (),
        )


class Conflict(AppError):
    """The state of things does not allow it."""

    default_code = "conflict"


class Transient(AppError):
    """It may work later: a dependency is away."""

    default_code = "unavailable"


class Poison(AppError):
    """A message that no number of tries will get through."""

    default_code = "internal"


class Replay(Exception):
    """No error: the request was answered before. Answer `response` (a serialised message) again; nothing was changed."""

    def __init__(self, response: bytes) -> None:
        super().__init__("answered before")
        self.response = response


def _class_of(code: str) -> type[AppError]:
    if code == QuotaExceeded.default_code:
        return QuotaExceeded
    entry = CATALOGUE[code]
    if entry.retryable:
        return Transient
    by_status = {401: Unauthenticated, 403: Forbidden, 404: NotFound, 409: Conflict}
    return by_status.get(entry.http, Invalid if entry.http < 500 else AppError)


def near(name: str, options: Iterable[str], limit: int = 3) -> list[str]:
    """The options that look most like `name`, nearest first; case does not count."""
    by_folded = {option.casefold(): option for option in options}
    return [by_folded[match] for match in get_close_matches(name.casefold(), list(by_folded), n=limit, cutoff=0.6)]
