from libs.errors import CATALOGUE, AppError, Invalid, NotFound, Violation
from libs.errors.openai import openai_document, openai_status


def test_every_code_has_a_status_that_is_not_sent_again_for_nothing() -> None:
    for code, entry in CATALOGUE.items():
        error = AppError("no", code=code)
        assert openai_status(error) != 409
        assert (openai_status(error) < 500) == (entry.http < 500)
        assert list(openai_document(error)["error"]) == ["message", "type", "param", "code"]


def test_what_is_wrong_is_named() -> None:
    error = Invalid.of([Violation("temperature", "it must be a number from 0 to 2")])
    assert openai_document(error)["error"]["param"] == "temperature"
    missing = openai_document(NotFound.of("endpoint", "word", ["words"]))["error"]
    assert (missing["type"], missing["param"], missing["code"]) == ("invalid_request_error", None, "model_not_found")
    assert "did you mean words?" in missing["message"]
