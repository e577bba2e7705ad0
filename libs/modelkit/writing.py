"""A text that goes on, byte by byte, by a model that gives logits for what follows. Numpy."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from libs.errors import AppError
from libs.modelkit.evaluation import softmax
from libs.modelkit.text import END, FIRST, encode_bytes, to_bytes

_COLDEST = 1e-3
# Of one answer, however large its pieces are.
_LONGEST = 4 << 20


class Generate(Protocol):
    """Goes on with a text, a token a piece, until one of `stop` comes (it is left out) or `max_tokens` are there."""

    def __call__(self, prompt: str, *, max_tokens: int, temperature: float, stop: list[str]) -> Iterator[str]: ...


# A vector a text, all of one length.
Embed = Callable[[list[str]], list[list[float]]]


def bounded(pieces: Iterator[str], max_tokens: int) -> Iterator[str]:
    """At most so many, whoever gives them. Raises `AppError` ("upstream_failed") where they are no texts, or too long together."""
    left = _LONGEST
    for piece in islice(pieces, max_tokens):
        if not isinstance(piece, str):
            raise AppError(f"The model's code yielded a {type(piece).__name__}, and no text", code="upstream_failed")
        left -= len(piece)
        if left < 0:
            raise AppError(f"The model's code yielded more than {_LONGEST} characters", code="upstream_failed")
        yield piece


def write(
    model: Callable[[NDArray[Any]], NDArray[np.floating]],
    length: int,
    prompt: str,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
) -> Iterator[str]:
    """A piece a byte, empty until a character is whole or it is clear that no stop begins with it. Ends at a stop, which is left out.

    `model` takes [1, length] token numbers. A temperature of 0 takes what is likeliest.
    """
    tokens, random, decoder = to_bytes(prompt), np.random.default_rng(), codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    for number in range(max_tokens):
        chosen = _choose(model(encode_bytes([tokens], length)), temperature, random)
        if chosen == END:
            break
        tokens = [*tokens[-length:], chosen]
        held += decoder.decode(bytes([chosen - FIRST]))
        if (at := _first(held, stop)) is not None:
            yield held[:at]
            return
        clear = len(held) if number == max_tokens - 1 else _clear(held, stop)
        yield held[:clear]
        held = held[clear:]
    if held:
        yield held


def _choose(logits: NDArray[np.floating], temperature: float, random: np.random.Generator) -> int:
    """A token's number; never padding."""
    possible = logits[:, 1:].astype(np.float64)
    if temperature < _COLDEST:
        return 1 + int(possible.argmax())
    return 1 + int(random.choice(possible.shape[1], p=softmax(possible / temperature)[0]))


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop begins."""
    return min((at for each in stop if (at := text.find(each)) >= 0), default=None)


def _clear(text: str, stop: Sequence[str]) -> int:
    """How much of it cannot be a part of a stop."""
    possible = (size for each in stop for size in range(1, len(each)) if text.endswith(each[:size]))
    return len(text) - max(possible, default=0)
