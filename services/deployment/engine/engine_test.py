"""The engine predicts what the model predicts, each row once and in order, and says what it cannot read."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from libs.errors import Invalid
from libs.modelkit.runtime import Runtime
from services.deployment.engine.conftest import lay_out, made, rows_of, table
from services.deployment.engine.predict import predict

ROOT = Path(__file__).parents[3]


def read_spec(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "spec.json").read_bytes()))


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "services.deployment.engine", str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_each_row_once_in_order_as_the_model_answers_it(runtime: Runtime, tmp_path: Path) -> None:
    splits = {"train": table(2345), "test": table(555)}
    folder = lay_out(tmp_path / "run", runtime, splits)
    predict(folder, read_spec(folder))
    found = rows_of(folder)
    records = [row for rows in splits.values() for row in rows.to_pylist()]
    assert [row["id"] for row in found] == [record["id"] for record in records]
    expected = runtime.predict_records([{"a": record["a"], "b": record["b"]} for record in records])
    assert [row["prediction"] for row in found] == [answer["prediction"] for answer in expected]
    for label in runtime.labels:
        assert np.allclose([row[f"probability_{label}"] for row in found], [answer["probabilities"][label] for answer in expected])


def test_a_number_needs_no_probabilities_and_an_input_that_may_lack_no_column(numbers: Runtime, runtime: Runtime, tmp_path: Path) -> None:
    rows = pa.table({"id": [7, 8], "a": [1.0, 2.0], "b": [3, 4]})
    folder = lay_out(tmp_path / "number", numbers, {"all": rows})
    predict(folder, read_spec(folder))
    expected = numbers.predict_records([{"a": 1.0, "b": 3}, {"a": 2.0, "b": 4}])
    assert [list(row) for row in rows_of(folder)] == [["id", "prediction"]] * 2
    assert np.allclose([row["prediction"] for row in rows_of(folder)], [answer["prediction"] for answer in expected])
    lacking = lay_out(tmp_path / "lacking", runtime, {"all": rows.drop_columns("b")}, probabilities=False)
    predict(lacking, read_spec(lacking))
    wanted = runtime.predict_records([{"a": 1.0, "b": None}, {"a": 2.0, "b": None}])
    assert [row["prediction"] for row in rows_of(lacking)] == [answer["prediction"] for answer in wanted]


@pytest.mark.parametrize("missing", [[1], [0, 2, 3], [4]])
def test_a_part_made_alone_has_the_bytes_that_it_has_among_all(runtime: Runtime, tmp_path: Path, missing: list[int]) -> None:
    splits = {"train": table(2345), "test": table(1555)}
    whole = lay_out(tmp_path / "whole", runtime, splits)
    predict(whole, read_spec(whole))
    again = lay_out(tmp_path / "again", runtime, splits)
    spec = read_spec(again)
    predict(again, {**spec, "parts": [part for part in spec["parts"] if part["number"] in missing]})
    assert made(again) == {number: made(whole)[number] for number in missing}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": [1.0, None]}, "row 2 lacks 'a'"),
        ({"a": [float("inf"), 1.0]}, "row 1 has an infinite 'a'"),
        ({"a": ["1", "2"]}, "'a' is string, and the model reads double"),
        ({"b": [1, 2]}, "'b' is integer, and the model reads string"),
    ],
)
def test_what_the_model_cannot_read_is_said_with_its_row(
    runtime: Runtime, tmp_path: Path, change: dict[str, list[Any]], words: str
) -> None:
    folder = lay_out(tmp_path / "run", runtime, {"all": pa.table({"id": [1, 2], "a": [1.0, 2.0], "b": ["x", "y"], **change})})
    with pytest.raises(Invalid, match=re.escape(words)):
        predict(folder, read_spec(folder))
    assert not made(folder)
    assert subprocess.run([sys.executable, "-m", "services.deployment.engine", str(folder)], cwd=ROOT, timeout=60).returncode == 3
    assert words in json.loads((folder / "error.json").read_bytes())["detail"]


def test_a_column_that_is_not_there(runtime: Runtime, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", runtime, {"all": table(5).drop_columns("a")})
    with pytest.raises(Invalid, match="split 'all' has no column 'a'"):
        predict(folder, read_spec(folder))


def test_pictures_that_cannot_be_read_are_said_with_where(pictures: Runtime, tmp_path: Path) -> None:
    rows = pa.table({"id": [1, 2], "image": pa.array([b"no picture", b"neither"], pa.binary())})
    folder = lay_out(tmp_path / "run", pictures, {"all": rows})
    with pytest.raises(Invalid, match="in the rows from 1 on"):
        predict(folder, read_spec(folder))


def test_killed_in_the_middle_whole_parts_stay_and_the_rest_has_the_same_bytes(runtime: Runtime, tmp_path: Path) -> None:
    splits = {"all": table(400_000)}
    whole, broken = (lay_out(tmp_path / name, runtime, splits, part_rows=5000) for name in ("whole", "broken"))
    assert start(whole).wait(120) == 0
    process = start(broken)
    _until_parts(broken, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = made(broken)
    assert 3 <= len(before) < 80
    spec = read_spec(broken)
    spec["parts"] = [part for part in spec["parts"] if part["number"] not in before]
    (broken / "spec.json").write_text(json.dumps(spec))
    assert start(broken).wait(120) == 0
    assert made(broken) == made(whole)


def _until_parts(folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(list((folder / "parts").glob("*.parquet"))) < count:
        assert time.monotonic() < end
        time.sleep(0.002)
