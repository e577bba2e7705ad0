import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from libs.errors import Invalid
from libs.modelkit import package as packages
from libs.modelkit.export import export
from libs.modelkit.package import Package
from libs.modelkit.preprocessing import fit_table
from libs.modelkit.runtime import load
from libs.modelkit.target import fit_target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of a linear classifier, without ONNX."""
    columns = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array(["x", "y", "x"], object)}
    target = fit_target("y", "integer", np.array([0.0, 7.0, 7.0]), classify=True)
    made = Package(
        "classification", "linear", {}, "float32", fit_table(columns, {"a": "double", "b": "string"}), target, {"accuracy": 1.0}, tmp_path
    )
    packages.write(made, {"weight": np.full((2, 4), 0.5, np.float32), "bias": np.array([0, 1], np.float32)})
    return tmp_path


def module() -> torch.nn.Linear:
    linear = torch.nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.fill_(0.5)
        linear.bias.copy_(torch.tensor([0.0, 1.0]))
    return linear


def test_torch_and_onnx_answer_alike(folder):
    records = [{"a": 1.5, "b": "x"}, {"a": -3, "b": "unknown"}]
    by_torch = load(folder)
    answers = by_torch.predict_records(records)
    assert export(module(), np.zeros((3, 4), np.float32), folder) == ""
    by_onnx = load(folder)
    assert (by_torch.engine, by_onnx.engine) == ("torch", "onnxruntime")
    for ours, theirs in zip(by_onnx.predict_records(records), answers, strict=True):
        assert ours["prediction"] == theirs["prediction"] == 7
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"])
        assert list(ours["probabilities"]) == ["0", "7"]


def test_an_export_with_other_outputs_is_not_shipped(folder):
    class Random(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    assert "differ" in export(Random(), np.zeros((3, 4), np.float32), folder)
    assert not (folder / packages.ONNX).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"architecture": "../x"},
        {"task": "magic"},
        {"dtype": "float8"},
        {"params": {"hidden": [10**9]}},
        {"preprocessing": {}},
        {"preprocessing": {"kind": "table", "inputs": [{"name": "a"}]}},
        {"preprocessing": {"kind": "text", "inputs": [], "vocabulary": [], "length": 1 << 40}},
        {"target": {}},
    ],
)
def test_a_package_that_was_tampered_with_is_refused(folder, change):
    path = folder / packages.MODEL
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Invalid):
        packages.read(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_package_is_refused(folder, content):
    (folder / packages.MODEL).write_bytes(content)
    with pytest.raises(Invalid):
        packages.read(folder)


def test_weights_that_are_none_are_refused(folder):
    (folder / packages.WEIGHTS).write_bytes(b"\x80\x04 pickle")
    with pytest.raises(Invalid):
        packages.read_weights(folder / packages.WEIGHTS)


def test_everything_but_the_torch_modules_loads_without_torch():
    code = (
        "import sys; import libs.modelkit.runtime, libs.modelkit.package, libs.modelkit.spec, libs.modelkit.fit, libs.modelkit.evaluation;"
        "sys.exit(bool({'torch', 'onnxruntime', 'pyarrow', 'PIL', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
