"""ONNX files as strangers send them: read without ONNX as ONNX reads them, refused in words, and answering in the sandbox."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from libs.errors import AppError, Invalid
from libs.modelkit import custom, guest, package
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.onnx_file import read_onnx
from libs.modelkit.runtime import load_any

ROWS = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
SUMS = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])


def linear(**changes: Any) -> onnx.ModelProto:
    """y = x · w, [n, 3] to [n, 2]."""
    weights = numpy_helper.from_array(np.array([[1, 0], [0, 1], [1, 1]], np.float32), "w")
    given = {"nodes": [helper.make_node("MatMul", ["x", "w"], ["y"])], "inputs": [ROWS], "outputs": [SUMS], "initializer": [weights]}
    given |= changes
    graph = helper.make_graph(given["nodes"], "g", given["inputs"], given["outputs"], given["initializer"])
    return helper.make_model(graph, opset_imports=given.get("opsets", [helper.make_opsetid("", 17)]), ir_version=9)


def external() -> onnx.ModelProto:
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model


def hidden_external() -> onnx.ModelProto:
    """Within a branch of a branch."""
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external().graph.initializer[0])], "i", [], [SUMS])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    return linear(nodes=[node])


def foreign() -> onnx.ModelProto:
    return linear(nodes=[helper.make_node("Shell", ["x"], ["y"], domain="com.stranger")])


def shaped(*sides: Any, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    return linear(inputs=[helper.make_tensor_value_info("x", kind, list(sides) if sides else None)])


HARM: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external data": (external, "another file"),
    "external data within branches": (hidden_external, "another file"),
    "a stranger's operator": (foreign, "not one of ONNX"),
    "a stranger's operators": (lambda: linear(opsets=[helper.make_opsetid("", 17), helper.make_opsetid("x", 1)]), "not those of ONNX"),
    "a newer opset": (lambda: linear(opsets=[helper.make_opsetid("", 99)]), "opset is 99"),
    "no opset": (lambda: linear(opsets=[]), "no opset"),
    "a second free side": (lambda: shaped("n", "m"), "only its first side"),
    "five rows": (lambda: shaped(5, 3), "only its first side"),
    "no shape": (shaped, "only its first side"),
    "complex numbers": (lambda: shaped("n", 3, kind=TensorProto.COMPLEX64), "element type"),
    "no input": (lambda: linear(inputs=[]), "takes nothing"),
}


@pytest.mark.parametrize(("make", "words"), HARM.values(), ids=HARM)
def test_what_is_not_served_is_refused_in_words(tmp_path: Path, make: Callable[[], onnx.ModelProto], words: str) -> None:
    (tmp_path / "model.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(Invalid) as raised:
        read_onnx(tmp_path / "model.onnx")
    assert words in raised.value.detail


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x38\x05", b"\x3a\xff\xff\xff\xff\x0f", b"PK\x03\x04" * 100])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(Invalid):
        read_onnx(tmp_path / "model.onnx")


def test_every_cut_of_a_file_ends_in_words_or_a_signature(tmp_path: Path) -> None:
    whole, path = linear().SerializeToString(), tmp_path / "model.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Invalid):
            read_onnx(path)


def test_many_parts_take_bounded_work(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01" * 600_000)
    with pytest.raises(Invalid, match="500000 parts"):
        read_onnx(tmp_path / "model.onnx")


def loaded(folder: Path, model: onnx.ModelProto) -> CodeRuntime | None:
    """None where the kernel cannot fence it off, and that was said."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    package.write_file(folder / package.MODEL, package.json.dumps(custom.describe(folder)).encode())
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            load_any(folder)
        return None
    runtime = load_any(folder)
    assert isinstance(runtime, CodeRuntime)
    return runtime


@pytest.mark.parametrize("rows", ["n", 1])
def test_it_answers_records(tmp_path: Path, rows: Any) -> None:
    sides = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, n]) for name, n in (("x", 3), ("y", 2)))
    runtime = loaded(tmp_path, linear(inputs=[next(sides)], outputs=[next(sides)]))
    if runtime is None:
        return
    try:
        answers = runtime.answer(runtime.read([{"x": [1, 2, 3]}, {"x": [0.5, 0, 0]}]))
        assert runtime.word(answers) == [{"y": [4.0, 5.0]}, {"y": [0.5, 0.0]}]
        for record in ({}, {"x": 1}, {"x": [1, 2]}, {"x": ["a", "b", "c"]}, [1, 2, 3]):
            with pytest.raises(Invalid):
                runtime.read([record])
        with pytest.raises(AppError, match="not JSON compliant"):
            runtime.answer(runtime.read([{"x": [1e300, 0, 0]}]))
        assert runtime.word(runtime.answer(runtime.read([{"x": [1, 1, 1]}]))) == [{"y": [2.0, 2.0]}]
    finally:
        runtime.close()
