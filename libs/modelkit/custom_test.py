"""A package of somebody's own code: what it may say of itself, and what it must answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libs.errors import AppError, Invalid
from libs.modelkit import custom, guest
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.package import MODEL
from libs.modelkit.runtime import load_any
from libs.modelkit.sandbox import MOST_STREAMS, Sandbox

SIGNATURE = {
    "inputs": [{"name": "x", "type": "double"}],
    "outputs": [{"name": "y", "type": "double"}, {"name": "near", "type": "string", "shape": [2]}],
}


def written(folder: Path, answer: str, signature: Any = None, pinned: str = "") -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(f"class Model:\n    def predict(self, records):\n        return [{answer} for r in records]\n")
    if signature:
        (folder / "signature.json").write_text(json.dumps(signature))
    if pinned:
        (folder / "requirements.txt").write_text(pinned)
    (folder / MODEL).write_text(json.dumps(custom.describe(folder)))
    return folder


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("{'y': r['x'] * 2, 'near': ['a', 'b']}", ""),
        ("r['x']", "an object with y, near"),
        ("{'y': 'much', 'near': ['a', 'b']}", "'y' is no double"),
        ("{'y': True, 'near': ['a', 'b']}", "'y' is no double"),
        ("{'y': 1, 'near': ['a']}", "of the shape [2]"),
        ("{'y': 1}", "'near' is no string"),
    ],
)
def test_answers_are_what_the_signature_says(tmp_path: Path, answer: str, words: str) -> None:
    folder = written(tmp_path / "m", answer, SIGNATURE, f"numpy=={np.__version__}")
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            load_any(folder)
        return
    runtime = load_any(folder)
    try:
        with pytest.raises(Invalid):
            runtime.read([{"x": "text"}])
        raw = runtime.read([{"x": 1.5}, {"x": 2}])
        if not words:
            assert runtime.word(runtime.answer(raw)) == [{"y": 3.0, "near": ["a", "b"]}, {"y": 4, "near": ["a", "b"]}]
            return
        with pytest.raises(AppError) as raised:
            runtime.answer(raw)
        assert words in raised.value.detail
    finally:
        runtime.close()


def test_records_without_a_signature_are_any_json(tmp_path: Path) -> None:
    folder = written(tmp_path / "m", "r")
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            load_any(folder)
        return
    runtime = load_any(folder)
    try:
        for records in ([{"a": [1, None]}, "text", [1, [2]], 7], [[1, 2], [3, 4]]):
            assert runtime.word(runtime.answer(runtime.read(records))) == records
        nested: Any = []
        for _ in range(2000):
            nested = [nested]
        with pytest.raises(Invalid):
            runtime.read([nested])
    finally:
        runtime.close()


def test_packages_that_are_not_here_are_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as raised:
        load_any(written(tmp_path / "m", "r", pinned="# ours\nnumpy==0.0.1\nno-such-package==2.0  # theirs\n"))
    assert [v.field for v in raised.value.errors] == ["requirements.txt, line 2", "requirements.txt, line 3"]
    assert f"numpy==0.0.1 is not among the model's wheels, nor in the platform, which has numpy {np.__version__}" in raised.value.detail
    assert "which has no no-such-package; bring its wheel" in raised.value.errors[1].message


@pytest.mark.parametrize(
    "signature",
    [
        [],
        {"inputs": {}},
        {"inputs": [{"name": "x"}]},
        {"inputs": [{"name": "x", "type": "tensor"}]},
        {"inputs": [{"name": "x", "type": "double"}] * 2},
        {"inputs": [{"name": "x", "type": "image"}]},
        {"inputs": [{"name": "x", "type": "double", "shape": [0]}]},
        {"outputs": [{"name": "x", "type": "double", "shape": [1 << 15, 1 << 15]}]},
        {"outputs": [{"name": "x", "type": "image", "shape": [8, 8, 3]}]},
    ],
)
def test_signatures_that_cannot_be(tmp_path: Path, signature: Any) -> None:
    with pytest.raises(Invalid):
        written(tmp_path / "m", "r", signature or [None])


@pytest.mark.parametrize(
    "line", ["numpy", "numpy>=1", "-r other.txt", "https://somewhere/x.whl", "numpy==1.* ; os_name", "numpy @ file:///x"]
)
def test_requirements_pin_versions(tmp_path: Path, line: str) -> None:
    with pytest.raises(Invalid):
        written(tmp_path / "m", "r", pinned=line)


def test_a_folder_without_code(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"neither model\.py"):
        custom.describe(tmp_path)


WRITER = """
import time
class Model:
    closed = 0
    def predict(self, records):
        return [self.closed for _ in records]
    def generate(self, prompt, *, max_tokens, temperature, stop):
        try:
            for number in range(max_tokens):
                if prompt == "hang":
                    time.sleep(60)
                yield number if prompt == "numbers" else "x" * (1 << 20) if prompt == "much" else f"{prompt}{number}{stop[0]}{temperature}"
        finally:
            self.closed += 1
    def embed(self, texts):
        return {"uneven": [[1.0], [1.0, 2.0]], "words": [["a"], ["b"]], "one": [[1.0]]}.get(texts[0], [[len(t), 0.5] for t in texts])
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CodeRuntime | None]:
    """None where the kernel cannot fence it off, and that was said."""
    (tmp_path / "model.py").write_text(WRITER)
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            Sandbox(tmp_path).start()
        yield None
        return
    with Sandbox(tmp_path, answer_seconds=2.0) as sandbox:
        yield CodeRuntime(None, sandbox)


def written_by(writer: CodeRuntime, prompt: str, tokens: int = 3) -> Iterator[str]:
    assert writer.generate and writer.embed
    return writer.generate(prompt, max_tokens=tokens, temperature=0.5, stop=["."])


def test_texts_come_piece_by_piece_beside_answers(writer: CodeRuntime | None) -> None:
    if writer is None:
        return
    first, second = written_by(writer, "a"), written_by(writer, "b")
    assert [next(first), next(second), next(first)] == ["a0.0.5", "b0.0.5", "a1.0.5"]
    assert writer.word(writer.answer(writer.read([1]))) == [0]
    first.close()  # type: ignore[attr-defined]
    assert list(second) == ["b1.0.5", "b2.0.5"]
    assert writer.word(writer.answer(writer.read([1]))) == [2]


@pytest.mark.parametrize(("prompt", "words"), [("numbers", "yielded a int"), ("much", "more than 4194304"), ("hang", "did not answer")])
def test_texts_that_mean_harm_end_in_words(writer: CodeRuntime | None, prompt: str, words: str) -> None:
    if writer is None:
        return
    with pytest.raises(AppError, match=words):
        list(written_by(writer, prompt, 10))
    assert list(written_by(writer, "a", 1)) == ["a0.0.5"]


def test_a_stream_ends_with_the_process_that_wrote_it(writer: CodeRuntime | None) -> None:
    if writer is None:
        return
    begun = written_by(writer, "a")
    next(begun)
    writer.close()
    with pytest.raises(AppError, match="started anew"):
        next(begun)
    opened = [written_by(writer, "a") for _ in range(MOST_STREAMS)]
    assert next(opened[0])
    for each in opened:
        next(each)
    with pytest.raises(AppError, match="try again"):
        next(written_by(writer, "a"))
    for each in opened:
        each.close()  # type: ignore[attr-defined]
    assert len(list(written_by(writer, "a"))) == 3


def test_texts_are_embedded(writer: CodeRuntime | None) -> None:
    if writer is None:
        return
    assert writer.embed and writer.embed(["ab", "c"]) == [[2.0, 0.5], [1.0, 0.5]]
    for texts in (["uneven", "x"], ["words", "x"], ["one", "x"]):
        with pytest.raises(AppError) as raised:
            writer.embed(texts)
        assert raised.value.code == "upstream_failed"
