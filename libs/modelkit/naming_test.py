"""ONNX files of scikit-learn, as skl2onnx writes them: with names they answer as what the platform trains; what does not fit is refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from libs.errors import AppError, Invalid
from libs.modelkit import custom, guest, package
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.runtime import load_any

WEIGHTS = np.array([[1, 0], [0, 1], [-1, -1]], np.float32)
FEATURES, CLASSES = ["length", "width"], ["setosa", "versicolor", "virginica"]
LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
PROBABILITIES = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])


def scikit(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], x: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("X", x, [None, 2])], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8)


def classifier(post_transform: str = "SOFTMAX", **changed: Any) -> onnx.ModelProto:
    """LogisticRegression with zipmap=False."""
    node = helper.make_node(
        "LinearClassifier",
        ["X"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=WEIGHTS.ravel().tolist(),
        intercepts=[0.0, 0.0, 2.0],
        classlabels_ints=[0, 1, 2],
        post_transform=post_transform,
    )
    return scikit(**{"nodes": [node], "outputs": [LABEL, PROBABILITIES], **changed})


def zipped() -> onnx.ModelProto:
    """As scikit-learn's classifiers are exported where nothing is said."""
    zipmap = helper.make_node("ZipMap", ["probabilities"], ["output_probability"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    pairs = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, None)))
    outputs = [LABEL, helper.make_value_info("output_probability", pairs)]
    return scikit([*classifier().graph.node, zipmap], outputs)


def regressor() -> onnx.ModelProto:
    """LinearRegression."""
    node = helper.make_node(
        "LinearRegressor", ["X"], ["variable"], domain="ai.onnx.ml", coefficients=[2.0, 1.0], intercepts=[1.0], targets=1
    )
    return scikit([node], [helper.make_tensor_value_info("variable", TensorProto.FLOAT, [None, 1])])


def written(folder: Path, model: onnx.ModelProto, names: Any = None) -> Path:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if names is not None:
        (folder / "names.json").write_text(names if isinstance(names, str) else json.dumps(names))
    (folder / package.MODEL).write_text(json.dumps(custom.describe(folder)))
    return folder


@contextmanager
def loaded(folder: Path) -> Iterator[CodeRuntime]:
    runtime = load_any(folder)
    assert isinstance(runtime, CodeRuntime)
    try:
        yield runtime
    finally:
        runtime.close()


fenced = pytest.mark.skipif(bool(guest.lacking()), reason="this kernel's sandbox refuses models that are brought, as onnx_file_test sees")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("{", "names.json is no JSON"),
        ([], "it is an object"),
        ({}, "it is an object"),
        ({"labels": CLASSES}, "it is an object"),
        ({"classes": "setosa"}, "classes are a list of 2 to 1000"),
        ({"classes": ["one"]}, "classes are a list of 2 to 1000"),
        ({"classes": [str(n) for n in range(1001)]}, "classes are a list of 2 to 1000"),
        ({"classes": [0, 1, 2]}, "'0' among the classes"),
        ({"classes": ["a", "b", ""]}, "'' among the classes"),
        ({"classes": ["a", "b", "c" * 257]}, "among the classes"),
        ({"classes": ["a", "b", "c\n"]}, "among the classes"),
        ({"classes": ["a", "b", "a"]}, "'a' is twice"),
        ({"classes": ["a", "b"]}, "2 classes are named, and the graph gives 'label' (one integer), 'probabilities' (3 double) a row"),
        ({"features": ["a"]}, "1 features are named, and the graph takes 'X' (2 double) a row"),
        ({"features": ["a", "b", "c"]}, "3 features are named"),
    ],
)
def test_names_that_do_not_fit_are_refused_in_words(tmp_path: Path, names: Any, words: str) -> None:
    with pytest.raises(Invalid) as raised:
        written(tmp_path, classifier(), names)
    assert words in raised.value.detail


def test_two_outputs_that_could_be_meant_are_told(tmp_path: Path) -> None:
    again = helper.make_node("Identity", ["probabilities"], ["twice"])
    outputs = [LABEL, PROBABILITIES, helper.make_tensor_value_info("twice", TensorProto.FLOAT, [None, 3])]
    with pytest.raises(Invalid, match="more than one output has as many"):
        written(tmp_path, classifier(nodes=[*classifier().graph.node, again], outputs=outputs), {"classes": CLASSES})


def test_a_zipmap_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="zipmap=False"):
        written(tmp_path, zipped())


@fenced
def test_a_classifier_answers_as_one_that_the_platform_trained(tmp_path: Path) -> None:
    with loaded(written(tmp_path, classifier(), {"classes": CLASSES, "features": FEATURES})) as runtime:
        assert [(field.name, field.type) for field in runtime.signature.inputs] == [("length", "double"), ("width", "double")]
        prediction, probabilities = runtime.signature.outputs
        assert (prediction.name, prediction.type, prediction.categories) == ("prediction", "string", tuple(CLASSES))
        assert (probabilities.name, probabilities.shape, probabilities.categories) == ("probabilities", (3,), tuple(CLASSES))
        rows = [[1.0, 0.0], [0.0, 5.0], [-3.0, -3.0]]
        answers = runtime.word(runtime.answer(runtime.read([dict(zip(FEATURES, row, strict=True)) for row in rows])))
        scores = np.exp(np.array(rows) @ WEIGHTS.T + [0, 0, 2])
        expected = scores / scores.sum(axis=1, keepdims=True)
        assert [answer["prediction"] for answer in answers] == [CLASSES[at] for at in expected.argmax(axis=1)]
        assert [list(answer["probabilities"]) for answer in answers] == [CLASSES] * 3
        assert np.allclose([list(answer["probabilities"].values()) for answer in answers], expected, atol=1e-6)
        with pytest.raises(Invalid, match="width"):
            runtime.read([{"length": 1}])


@fenced
def test_without_names_it_answers_what_the_graph_gives(tmp_path: Path) -> None:
    with loaded(written(tmp_path, classifier())) as runtime:
        [answer] = runtime.word(runtime.answer(runtime.read([{"X": [0, 5]}])))
        assert (answer["label"], round(sum(answer["probabilities"]), 3)) == (1, 1)


@fenced
@pytest.mark.parametrize(("names", "record"), [(None, {"X": [1, 2]}), ({"features": FEATURES}, {"length": 1, "width": 2})])
def test_a_regressor_answers_a_number(tmp_path: Path, names: Any, record: Any) -> None:
    with loaded(written(tmp_path, regressor(), names)) as runtime:
        assert runtime.word(runtime.answer(runtime.read([record]))) == [{"variable": 5.0}]


@fenced
def test_scores_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"'probabilities' gives scores.*let the graph end with Softmax"):
        load_any(written(tmp_path, classifier("NONE"), {"classes": CLASSES}))


@fenced
def test_a_row_without_probabilities_is_refused_alone(tmp_path: Path) -> None:
    """Infinity less infinity: what single precision makes of a large number."""
    with loaded(written(tmp_path, classifier(), {"classes": CLASSES})) as runtime:
        with pytest.raises(AppError, match="gives scores"):
            runtime.answer(runtime.read([{"X": [1e300, 0]}]))
        assert runtime.word(runtime.answer(runtime.read([{"X": [0, 5]}])))[0]["prediction"] == "versicolor"
