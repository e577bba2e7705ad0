"""The catalogue is complete and the kind words are kind."""

import grpc
import pytest

from libs.errors import CATALOGUE, AppError, Invalid, NotFound, Violation, near


def subclasses(cls: type[AppError]) -> list[type[AppError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in subclasses(child))]


def test_every_class_has_a_catalogued_code() -> None:
    assert {cls.default_code for cls in subclasses(AppError)} <= set(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_means_something_to_each_transport(code: str) -> None:
    entry = CATALOGUE[code]
    assert hasattr(grpc.StatusCode, entry.grpc)
    assert 400 <= entry.http < 600
    assert entry.title


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        AppError("x", code="no_such_code")


def test_near_names_are_suggested() -> None:
    assert near("Diagnosys", ["radius", "diagnosis"]) == ["diagnosis"]
    assert "did you mean wdbc?" in NotFound.of("dataset", "wbdc", ["wdbc", "digits"]).detail


def test_the_first_violation_is_the_detail() -> None:
    error = Invalid.of([Violation("a", "is bad"), Violation("b", "is worse")])
    assert error.detail == "a: is bad (and 1 more)"
    assert error.entry.http == 400
