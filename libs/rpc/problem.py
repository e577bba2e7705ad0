"""AppError ↔ lepton.common.v1.Problem, as it travels in trailers and stands in failed resources."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from lepton.common.v1 import problem_pb2
from libs.errors import (
    CATALOGUE,
    AppError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    Transient,
    Unauthenticated,
    Violation,
)

TRAILER = "lepton-problem-bin"
# A trailer must fit into the metadata limit of either side (see server.py), so no more than this much of the errors goes along.
MAX_TRAILER_BYTES = 24 * 1024

_BY_CODE: dict[str, type[AppError]] = {
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "subscription_required": Forbidden,
    "quota_exceeded": QuotaExceeded,
    "not_found": NotFound,
    "too_large": Invalid,
    "rate_limited": Transient,
}
_BY_STATUS: dict[str, type[AppError]] = {
    "INVALID_ARGUMENT": Invalid,
    "ALREADY_EXISTS": Conflict,
    "FAILED_PRECONDITION": Conflict,
    "ABORTED": Conflict,
    "UNAVAILABLE": Transient,
    "DEADLINE_EXCEEDED": Transient,
}


def error_class(code: str) -> type[AppError]:
    """The exception that stands for a code of the catalogue."""
    return _BY_CODE.get(code) or _BY_STATUS.get(CATALOGUE[code].grpc, AppError)


def to_problem(error: AppError) -> problem_pb2.Problem:
    """All of it."""
    problem = problem_pb2.Problem(code=error.code, detail=error.detail)
    for violation in error.errors:
        problem.errors.add(field=violation.field, message=violation.message, suggestions=violation.suggestions)
    if error.meta:
        problem.meta.update({str(key): _plain(value) for key, value in error.meta.items()})
    return problem


def from_problem(problem: problem_pb2.Problem) -> AppError:
    """The exception again; a code that this catalogue lacks becomes "internal"."""
    code = problem.code if problem.code in CATALOGUE else "internal"
    errors = [Violation(each.field, each.message, tuple(each.suggestions)) for each in problem.errors]
    return error_class(code)(problem.detail, code=code, errors=errors, meta=struct_to_dict(problem.meta))


def trailer_of(error: AppError) -> bytes:
    """The problem, with as many of its violations as fit; the first ones stay."""
    problem = to_problem(error)
    while problem.ByteSize() > MAX_TRAILER_BYTES and problem.errors:
        del problem.errors[len(problem.errors) // 2 :]
    if problem.ByteSize() > MAX_TRAILER_BYTES:
        problem = problem_pb2.Problem(code=error.code, detail=error.detail[:2000])
    return problem.SerializeToString()


def _plain(value: Any) -> Any:
    """What a Struct can hold; an error must never fail on its own words."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


def struct_to_dict(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Plain Python; whole numbers come back as int."""
    return {key: value_to_python(value) for key, value in struct.fields.items()}


def value_to_python(value: struct_pb2.Value) -> Any:
    """None for null and for a Value with nothing in it."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= 2**53 else number
    if kind == "struct_value":
        return struct_to_dict(value.struct_value)
    if kind == "list_value":
        return [value_to_python(item) for item in value.list_value.values]
    return getattr(value, kind) if kind and kind != "null_value" else None
