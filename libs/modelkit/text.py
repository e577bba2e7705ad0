"""Texts to token numbers. To tell texts apart: lower case, words and single signs, the most frequent ones known; to write them: bytes.

Stdlib and numpy.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PADDING, UNKNOWN, FIRST = 0, 1, 2
_TOKEN = re.compile(r"\w+|[^\w\s]")
_LONGEST_TOKEN = 64
# Of bytes: where a text ends, and before it begins; a byte's number follows by FIRST.
END = 1
BYTES = FIRST + 256
LABELS = ["", "end", *(chr(byte) if 32 < byte < 127 else f"0x{byte:02x}" for byte in range(256))]


def tokenise(text: str) -> list[str]:
    return [token[:_LONGEST_TOKEN] for token in _TOKEN.findall(text.lower())]


def learn_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """The up to `size` most frequent tokens, ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenise(text))
    return [token for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]


def encode(texts: Sequence[str], numbers: Mapping[str, int], length: int) -> NDArray[np.int64]:
    """Token numbers [N, length], padded with 0 at the end; longer texts are cut."""
    tokens = np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        found = [numbers.get(token, UNKNOWN) for token in tokenise(text)[:length]]
        tokens[row, : len(found)] = found
    return tokens


def to_bytes(text: str) -> list[int]:
    """Token numbers of a text that begins."""
    return [END, *(FIRST + byte for byte in text.encode("utf-8", "replace"))]


def encode_bytes(texts: Sequence[list[int]], length: int) -> NDArray[np.int64]:
    """[N, length] of token numbers, padded with 0 at the end; of longer ones the last."""
    tokens = np.zeros((len(texts), length), np.int64)
    for row, numbers in enumerate(texts):
        last = numbers[-length:]
        tokens[row, : len(last)] = last
    return tokens
