"""Models that members brought, over a dataset's rows: each once and in order, and what one of them does wrong is said with its number."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from libs.errors import Invalid
from libs.modelkit import custom, guest, package
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.runtime import load_any
from libs.modelkit.sandbox import Sandbox
from libs.modelkit.signature import Field, Signature
from services.deployment.engine.brought import Brought
from services.deployment.engine.conftest import lay_out, made, rows_of
from services.deployment.engine.predict import predict

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(bool(guest.lacking()), reason="this kernel's sandbox refuses models that are brought, as custom_test sees")

SIGNATURE = Signature((Field("x", "double"),), (Field("y", "double"),))
Y = [{"name": "y", "type": "double"}]
DOUBLES = "return [{'y': 2 * record['x']} for record in records]"


def written(folder: Path, body: str, signature: Signature = SIGNATURE, head: str = "") -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(f"{head}\nclass Model:\n    def predict(self, records):\n        {body}\n")
    (folder / "signature.json").write_text(json.dumps(signature.as_json()))
    return described(folder)


def described(folder: Path) -> Path:
    (folder / package.MODEL).write_text(json.dumps(custom.describe(folder)))
    return folder


def numbered(rows: int) -> pa.Table:
    return pa.table({"id": np.arange(rows), "x": np.arange(rows) / 2})


def run(folder: Path, model: Path, splits: dict[str, pa.Table], added: list[dict[str, str]], **changed: Any) -> Path:
    laid = lay_out(folder, model, splits, added=added, **changed)
    predict(laid, json.loads((laid / "spec.json").read_bytes()))
    return laid


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "services.deployment.engine", str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_each_row_once_in_order_as_the_code_answers_it(tmp_path: Path) -> None:
    model = written(tmp_path / "m", DOUBLES)
    folder = run(tmp_path / "run", model, {"train": numbered(2345), "test": numbered(70)}, Y)
    assert rows_of(folder) == [{"id": at, "y": float(at)} for at in (*range(2345), *range(70))]
    assert len(made(folder)) == 4


@pytest.mark.parametrize("probabilities", [True, False])
def test_an_onnx_file_answers_with_its_classes(tmp_path: Path, probabilities: bool) -> None:
    weights = numpy_helper.from_array(np.array([[1, -1], [0, 2]], np.float32), "w")
    nodes = [helper.make_node("MatMul", ["X", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["p"])]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("X", "p")]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [weights])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.onnx").write_bytes(content)
    (tmp_path / "m" / "names.json").write_text(json.dumps({"features": ["a", "b"], "classes": ["no", "yes"]}))
    model, draw = described(tmp_path / "m"), np.random.default_rng(0)
    rows = pa.table({"id": np.arange(3000), "a": draw.normal(size=3000), "b": draw.integers(-2, 2, 3000)})
    added = [{"name": "prediction", "type": "string"}] + [{"name": f"probability_{label}", "type": "double"} for label in ("no", "yes")]
    folder = run(tmp_path / "run", model, {"all": rows}, added if probabilities else added[:1], probabilities=probabilities)
    runtime = load_any(model)
    assert isinstance(runtime, CodeRuntime)
    answers = runtime.word(runtime.answer(runtime.read(rows.select(["a", "b"]).to_pylist())))
    runtime.close()
    assert {answer["prediction"] for answer in answers} == {"no", "yes"}
    found = rows_of(folder)
    assert [(row["id"], row["prediction"]) for row in found] == [(at, answer["prediction"]) for at, answer in enumerate(answers)]
    if probabilities:
        assert np.allclose([row["probability_yes"] for row in found], [answer["probabilities"]["yes"] for answer in answers], atol=1e-6)
    else:
        assert list(found[0]) == ["id", "prediction"]


def test_a_record_has_what_a_caller_of_an_endpoint_would_send(tmp_path: Path) -> None:
    """Numbers, booleans, times, pictures and what is missing; answers of each type, with a shape, and left out."""
    picture = io.BytesIO()
    Image.new("L", (2, 2)).save(picture, "PNG")
    rows = pa.table(
        {
            "id": [1, 2],
            "truth": [1.0, 0.0],
            "count": [True, False],
            "share": pa.array([float("nan"), 0.5]),
            "at": pa.array([datetime(2025, 1, 31, 12, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "day": pa.array([date(2025, 1, 31)] * 2),
            "word": pa.array(["a", "b"]).dictionary_encode(),
            "image": pa.array([picture.getvalue()] * 2),
        }
    )
    types = {"truth": "boolean", "count": "integer", "share": "double", "at": "string", "day": "string", "word": "string", "none": "string"}
    inputs = tuple(Field(name, kind, optional=name in ("share", "at", "none")) for name, kind in types.items())
    outputs = (
        Field("said", "string"),
        Field("pair", "integer", optional=True, shape=(2,)),
        Field("truth", "boolean"),
        Field("whole", "double"),
    )
    body = "return [{'said': json.dumps(r), 'truth': r['truth'], 'whole': 1} | ({'pair': [1, 2]} if r['truth'] else {}) for r in records]"
    signature = Signature((*inputs, Field("image", "image", shape=(2, 2, 1))), outputs)
    model = written(tmp_path / "m", body, signature, head="import json")
    added = [("said", "string"), ("pair_0", "integer"), ("pair_1", "integer"), ("truth", "boolean"), ("whole", "double")]
    first, second = rows_of(run(tmp_path / "run", model, {"all": rows}, [{"name": name, "type": kind} for name, kind in added]))
    record = json.loads(first.pop("said"))
    assert record.pop("image").startswith("iVBORw0KGgo")
    assert record == {"truth": True, "count": 1, "share": None, "at": "2025-01-31T12:00:00Z", "day": "2025-01-31T00:00:00Z", "word": "a"}
    assert first == {"id": 1, "pair_0": 1, "pair_1": 2, "truth": True, "whole": 1.0}
    assert json.loads(second.pop("said"))["at"] is None
    assert second == {"id": 2, "pair_0": None, "pair_1": None, "truth": False, "whole": 1.0}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("raise ValueError('not this one')", "row 1235 has no answer: The model's code failed: ValueError: not this one"),
        ("os._exit(1)", "row 1235 has no answer: The model's process ended before it could answer"),
        ("return float('nan')", "row 1235 has no answer: The model's code failed: ValueError"),
        ("return 'much'", "row 1235 has no answer: The model's code answered what its signature does not say: 'y' is no double"),
        ("return bytearray(1 << 40)", "row 1235 has no answer: The model's code failed: MemoryError"),
        ("return 10 ** 400", "row 1235 has no answer: no column of type double holds its 'y'"),
    ],
)
def test_a_row_that_the_code_does_not_answer_is_named(tmp_path: Path, harm: str, words: str) -> None:
    head = f"import os\ndef harm():\n    {harm}\n"
    model = written(tmp_path / "m", "return [{'y': harm() if r['x'] == 617 else r['x']} for r in records]", head=head)
    folder = tmp_path / "run"
    with pytest.raises(Invalid) as raised:
        run(folder, model, {"all": numbered(2000)}, Y)
    assert raised.value.code == "invalid_data"
    assert words in raised.value.detail
    assert list(made(folder)) == [0]


@pytest.mark.parametrize(
    ("cell", "words"),
    [(None, "row 7 has no answer: null does not fit; 'x' takes a number"), (float("inf"), "row 7 has no answer: inf does not fit")],
)
def test_a_row_that_is_no_record_is_named(tmp_path: Path, cell: Any, words: str) -> None:
    model = written(tmp_path / "m", DOUBLES)
    with pytest.raises(Invalid) as raised:
        run(tmp_path / "run", model, {"all": pa.table({"id": range(9), "x": [1.0] * 6 + [cell, 1.0, 1.0]})}, Y)
    assert words in raised.value.detail
    with pytest.raises(Invalid, match="split 'all' has no column 'x'"):
        run(tmp_path / "other", model, {"all": numbered(9).drop_columns("x")}, Y)


def test_texts_and_numbers_that_no_column_holds(tmp_path: Path) -> None:
    signature = Signature((Field("x", "double"),), (Field("word", "string"), Field("n", "integer")))
    added = [{"name": "word", "type": "string"}, {"name": "n", "type": "integer"}]
    for at, (word, number) in enumerate((("'\\ud800'", 1), ("'a'", 1 << 70))):
        model = written(tmp_path / f"m{at}", f"return [{{'word': {word}, 'n': {number}}} for r in records]", signature)
        with pytest.raises(Invalid, match=f"row 1 has no answer: no column of type {added[at]['type']} holds its '{added[at]['name']}'"):
            run(tmp_path / f"run{at}", model, {"all": numbered(3)}, added)


@contextmanager
def impatient(folder: Path, seconds: float) -> Iterator[Brought]:
    with Sandbox(folder, answer_seconds=seconds) as sandbox:
        yield Brought(CodeRuntime(SIGNATURE, sandbox), Y, probabilities=True)


def test_a_row_that_the_code_hangs_at_is_named(tmp_path: Path) -> None:
    model = written(tmp_path / "m", "time.sleep(60 if any(r['x'] == 5 for r in records) else 0); " + DOUBLES, head="import time")
    with impatient(model, 0.3) as brought, pytest.raises(Invalid) as raised:
        brought.columns(numbered(20), 1000)
    assert "row 1011 has no answer: The model's code did not answer within 0.3 s and was ended" in raised.value.detail


def test_code_that_is_slow_is_asked_for_less_at_once(tmp_path: Path) -> None:
    model = written(tmp_path / "m", "time.sleep(0.02 * len(records)); " + DOUBLES, head="import time")
    with impatient(model, 0.5) as brought:
        started = time.monotonic()
        assert brought.columns(numbered(100), 0)["y"].to_pylist() == list(range(100))
        assert time.monotonic() - started < 15


def test_killed_in_the_middle_the_rest_is_made_and_nothing_of_it_lives_on(tmp_path: Path) -> None:
    model = written(tmp_path / "m", "time.sleep(0.02); " + DOUBLES, head="import time")
    whole, broken = (lay_out(tmp_path / name, model, {"all": numbered(5000)}, part_rows=500, added=Y) for name in ("whole", "broken"))
    assert start(whole).wait(120) == 0
    process = start(broken)
    until = time.monotonic() + 60
    while len(made(broken)) < 3:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.002)
    guests = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert guests
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = made(broken)
    assert 3 <= len(before) < 10
    while any(Path(f"/proc/{guest}/stat").exists() and "Z" not in Path(f"/proc/{guest}/stat").read_text() for guest in guests):
        assert time.monotonic() < until
        time.sleep(0.01)
    spec = json.loads((broken / "spec.json").read_bytes())
    spec["parts"] = [part for part in spec["parts"] if part["number"] not in before]
    (broken / "spec.json").write_text(json.dumps(spec))
    assert start(broken).wait(120) == 0
    assert made(broken) == made(whole)


def test_code_that_cannot_be_loaded_ends_it_in_words(tmp_path: Path) -> None:
    model = written(tmp_path / "m", DOUBLES, head="raise ValueError('never')")
    folder = lay_out(tmp_path / "run", model, {"all": numbered(3)}, added=Y)
    assert start(folder).wait(60) == 3
    problem = json.loads((folder / "error.json").read_bytes())
    assert problem["code"] == "process_failed"
    assert "ValueError: never" in problem["detail"]
