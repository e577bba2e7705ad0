"""Models whose owner wrote their code, over the protocol's tensors and over records: what is asked together is answered apart."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from libs.errors import AppError
from libs.modelkit import guest
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.sandbox import Sandbox
from libs.modelkit.signature import Field, Signature, describe
from services.deployment.replica.batching import Batcher, Outcome
from services.deployment.replica.oip import Protocol

SIGNATURE = Signature(
    (Field("x", "double", shape=(2,)), Field("name", "string")),
    (Field("sum", "double"), Field("names", "string", shape=(2,)), Field("n", "integer")),
)


HANGS = """
import time
class Model:
    def predict(self, records):
        time.sleep(records[0])
        return records
"""


class Played(Sandbox):
    """Answers here, as a sandbox does; fails for the name "bad"."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.offers = frozenset({"predict"})

    def predict(self, records: list[Any]) -> list[Any]:
        self.sizes.append(len(records))
        if any(record["name"] == "bad" for record in records):
            raise AppError("The model's code failed: bad", code="upstream_failed")
        return [{"sum": sum(r["x"]), "names": [r["name"], "b"], "n": int(r["x"][0])} for r in records]


def body(rows: list[list[float]], names: list[str], **more: Any) -> bytes:
    x = {"name": "x", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": rows}
    return orjson.dumps({"inputs": [x, {"name": "name", "datatype": "BYTES", "shape": [len(names)], "data": names}], **more})


def test_tensors_become_records_and_answers_tensors() -> None:
    runtime = CodeRuntime(SIGNATURE, Played())
    protocol = Protocol(runtime, "m", "1")
    assert [(each["datatype"], each["shape"]) for each in protocol.metadata()["inputs"]] == [("FP64", [-1, 2]), ("BYTES", [-1, 1])]
    asked, raw = protocol.read(body([[1, 2], [3, 4.5]], ["p", "q"]), None)
    content, _ = protocol.write(asked, runtime.answer(raw))
    outputs = {each["name"]: each for each in orjson.loads(content)["outputs"]}
    assert (outputs["sum"]["data"], outputs["n"]["data"]) == ([3.0, 7.5], [1, 3])
    assert (outputs["names"]["shape"], outputs["names"]["data"]) == ([2, 2], ["p", "b", "q", "b"])
    asked, _ = protocol.read(body([[1, 2]], ["p"], outputs=[{"name": "n"}]), None)
    assert [tensor.name for tensor in protocol.outputs(asked, runtime.answer(raw))] == ["n"]


class Classes(Played):
    """As the class that answers by an ONNX file whose classes have names."""

    def predict(self, records: list[Any]) -> list[Any]:
        return [{"prediction": "b", "probabilities": [0.25, record["y"]]} for record in records]


def test_a_classifier_s_labels_are_there_over_records_and_tensors() -> None:
    inputs = (Field("x", "double"), Field("y", "double"))
    outputs = describe((), ["a", "b"]).outputs
    runtime = CodeRuntime(Signature(inputs, outputs), Classes(), ["a", "b"])
    answers = runtime.answer(runtime.read([{"x": 1, "y": 0.75}]))
    assert runtime.word(answers) == [{"prediction": "b", "probabilities": {"a": 0.25, "b": 0.75}}]
    protocol = Protocol(runtime, "m", "1")
    assert [output["parameters"]["labels"] for output in protocol.metadata()["outputs"]] == [["a", "b"]] * 2
    rows = {"name": "rows", "datatype": "FP64", "shape": [2, 2], "data": [[1, 0.75], [1, 0.5]]}
    asked, raw = protocol.read(orjson.dumps({"inputs": [rows]}), None)
    content, _ = protocol.write(asked, runtime.answer(raw))
    given = {each["name"]: each for each in orjson.loads(content)["outputs"]}
    assert (given["prediction"]["data"], given["prediction"]["shape"]) == (["b", "b"], [2])
    assert (given["probabilities"]["data"], given["probabilities"]["shape"]) == ([0.25, 0.75, 0.25, 0.5], [2, 2])


def test_tensors_that_do_not_fit() -> None:
    protocol = Protocol(CodeRuntime(SIGNATURE, Played()), "m", "1")
    for wrong in (body([[1, 2, 3]], ["p"]), body([[1, 2]], ["p", "q"]), orjson.dumps({"inputs": []})):
        with pytest.raises(AppError) as raised:
            protocol.read(wrong, None)
        assert raised.value.code != "internal"
    head = orjson.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP64", "shape": [1, 2], "parameters": {"binary_data_size": 16}},
                {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["p"]},
            ]
        }
    )
    with pytest.raises(AppError, match="not finite"):
        protocol.read(head + np.array([1, np.nan]).tobytes(), len(head))


def test_free_records_have_no_tensors() -> None:
    with pytest.raises(AppError, match="/predict") as raised:
        Protocol(CodeRuntime(None, Played()), "m", "1").read(body([[1, 2]], ["p"]), None)
    assert raised.value.code == "unimplemented"


async def test_a_request_that_fails_takes_no_other_along() -> None:
    played = Played()
    runtime = CodeRuntime(SIGNATURE, played)
    batcher = Batcher(runtime)
    loop = asyncio.get_running_loop()
    answered: list[asyncio.Future[Outcome]] = []
    for name in ("good", "bad", "fine"):
        answered.append(loop.create_future())
        batcher.submit(runtime.read([{"x": [1, 2], "name": name}]), answered[-1].set_result)
    good, bad, fine = await asyncio.gather(*answered)
    assert isinstance(bad, AppError)
    assert not isinstance(good, Exception) and not isinstance(fine, Exception)
    assert (good[0]["names"][0], fine[0]["names"][0]) == ("good", "fine")
    assert played.sizes == [3, 1, 1, 1]
    assert (batcher.statistics.success.count, batcher.statistics.failure.count) == (2, 1)


def test_code_that_hangs_is_a_504_and_the_next_call_is_answered(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HANGS)
    if guest.lacking():
        with pytest.raises(AppError, match="Landlock"):
            Sandbox(tmp_path).start()
        return
    with Sandbox(tmp_path, answer_seconds=1.0) as sandbox:
        runtime = CodeRuntime(None, sandbox)
        with pytest.raises(AppError, match="did not answer within 1 s") as raised:
            runtime.answer(runtime.read([60]))
        assert raised.value.entry.http == 504
        assert runtime.word(runtime.answer(runtime.read([0]))) == [0]
