"""Bytes to pieces: whole characters, stops that are left out, and what is drawn."""

import numpy as np
import pytest

from libs.modelkit.text import BYTES, END, FIRST
from libs.modelkit.writing import write


def says(text: str):
    """A model that says this after a prompt of one letter, and then ends; it sees up to 64 tokens."""
    answers = [FIRST + byte for byte in text.encode()] + [END]

    def model(rows):
        logits = np.full((1, BYTES), -20.0, np.float32)
        logits[0, answers[min(np.count_nonzero(rows) - 2, len(answers) - 1)]] = 20
        logits[0, 0] = 100  # padding is never taken
        return logits

    return model


@pytest.mark.parametrize("temperature", [0, 1])
def test_characters_are_whole(temperature):
    pieces = list(write(says("é€ x"), 64, "p", 50, temperature, []))
    assert pieces == ["", "é", "", "", "€", " ", "x"]


@pytest.mark.parametrize(
    ("stop", "written"), [(["\nuser:"], "one\nus"), (["user:"], "one\nus"), (["us"], "one\n"), (["x", "ne"], "o"), ([], "one\nus")]
)
def test_a_stop_is_left_out_and_what_only_began_like_one_is_not(stop, written):
    pieces = list(write(says("one\nus"), 64, "p", 50, 0, stop))
    assert "".join(pieces) == written


def test_no_more_than_asked_for_and_nothing_held_back():
    assert list(write(says("abcdef"), 64, "p", 3, 0, ["cd"])) == ["a", "b", "c"]


def test_a_long_prompt_is_read_by_its_end():
    seen = []

    def model(rows):
        seen.append(rows.tolist())
        return np.eye(BYTES, dtype=np.float32)[[END]]

    assert list(write(model, 4, "abcdef", 5, 0, [])) == []
    assert seen == [[[FIRST + byte for byte in b"cdef"]]]


def test_temperature_draws():
    model = lambda rows: np.log(np.array([[0, 0, *[0] * 97, 3, 1, *[0] * 157]]) + 1e-9)  # noqa: E731
    drawn = [next(write(model, 4, "", 1, 1.0, [])) for _ in range(200)]
    assert set(drawn) == {"a", "b"}
    assert 110 < drawn.count("a") < 190
