"""What is taken, what it becomes, and what is said of what is not taken."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import AppError
from services.data.engine.delimited import MISSING
from services.data.engine.ingest import ingest
from services.data.engine.limits import Limits
from services.data.engine.sample_files import ALBUM, BROKEN, Broken, parquet, picture, zipped

LIMITS = Limits(max_cells=40_000, threads=1)


def read(folder: Path, content: bytes, name: str = "data.csv") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    source = folder / "upload"
    source.write_bytes(content)
    answer = ingest({"path": str(source), "file_name": name}, folder, LIMITS)
    return answer, pq.read_table(folder / "all.parquet").to_pylist()


def types(answer: dict[str, Any]) -> dict[str, str]:
    return {column["name"]: column["type"] for column in answer["columns"]}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_what_is_wrong_is_said(tmp_path: Path, broken: Broken) -> None:
    with pytest.raises(AppError) as caught:
        read(tmp_path, broken.content, broken.file_name)
    assert caught.value.code == broken.code, caught.value
    assert caught.value.errors
    if broken.field is not None:
        assert caught.value.errors[0].field == broken.field, caught.value
    for word in broken.words:
        assert word in caught.value.detail
    assert len(caught.value.detail) < 600


def test_every_line_that_is_wrong_is_listed(tmp_path: Path) -> None:
    with pytest.raises(AppError) as caught:
        read(tmp_path, b"a,b\n1\n2,3\n4\n5,6,7\n")
    assert [error.field for error in caught.value.errors] == ["line 2", "line 4", "line 5"]
    assert caught.value.meta == {"lines": 3}


def test_types_are_the_narrowest_that_lose_nothing(tmp_path: Path) -> None:
    rows = [
        "whole,real,truth,day,zoned,code,huge,mixed,plus,text",
        "1,1.5,true,2024-01-31,2024-01-31T10:00:00+02:00,00123,9223372036854775808,9007199254740993,+4930123456,x",
        "-20,2e3,FALSE,2024-02-29 12:30:00.25,2024-01-31 10:00Z,45,1,1.5,+4930654321,1",
    ]
    answer, table = read(tmp_path, "\n".join(rows).encode())
    assert types(answer) == {
        "whole": "integer",
        "real": "double",
        "truth": "boolean",
        "day": "timestamp",
        "zoned": "timestamp",
        "code": "string",
        "huge": "string",
        "mixed": "string",
        "plus": "string",
        "text": "string",
    }
    assert table[0]["code"] == "00123"
    assert table[0]["zoned"].isoformat() == "2024-01-31T08:00:00"
    assert table[1]["day"].isoformat() == "2024-02-29T12:30:00.250000"
    assert table[0]["huge"] == "9223372036854775808"
    notices = " ".join(answer["notices"])
    for word in ("'code' stays text", "zeros", "'huge' stays text", "'mixed' stays text", "UTC"):
        assert word in notices


def test_cells_that_mean_no_value_are_missing_and_counted(tmp_path: Path) -> None:
    content = b'a,b,c\n1,NA,x\n?,2.5,-\n3,null,\n4,NaN,"None"\n5,n/a,y\n'
    answer, table = read(tmp_path, content)
    assert types(answer) == {"a": "integer", "b": "double", "c": "string"}
    assert [row["a"] for row in table] == [1, None, 3, 4, 5]
    assert [row["b"] for row in table] == [None, 2.5, None, None, None]
    assert [row["c"] for row in table] == ["x", None, None, None, "y"]
    assert [column["nullable"] for column in answer["columns"]] == [True, True, True]
    assert "Column 'a': 1 of 5 values are missing (written as '?')." in answer["notices"]


def test_a_column_of_numbers_with_a_stray_text_says_so(tmp_path: Path) -> None:
    answer, _ = read(tmp_path, b"age\n" + b"41\n" * 30 + b"forty\n")
    assert types(answer) == {"age": "string"}
    assert any("most values are numbers, but not 'forty'" in notice for notice in answer["notices"])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_separators_and_line_ends(tmp_path: Path, separator: str, newline: str, bom: str) -> None:
    text = bom + newline.join(separator.join(row) for row in (["a", "b c", "d"], ["1", "x", "1.5"], ["2", '"y\n z"', "2.5"])) + newline
    answer, table = read(tmp_path, text.encode())
    assert types(answer) == {"a": "integer", "b c": "string", "d": "double"}
    assert table == [{"a": 1, "b c": "x", "d": 1.5}, {"a": 2, "b c": "y\n z", "d": 2.5}]


def test_a_single_column(tmp_path: Path) -> None:
    answer, table = read(tmp_path, b'a\n1\n\n""\n2\n')
    assert [row["a"] for row in table] == [1, None, 2]
    assert answer["rows"] == 3


def test_lines_of_any_length_up_to_the_limit(tmp_path: Path) -> None:
    lengths = [10, 3_000_000, 100, 7_000_000]
    content = "a,b\n" + "".join(f"{number},{'x' * length}\n" for number, length in enumerate(lengths))
    _, table = read(tmp_path, content.encode())
    assert [len(row["b"]) for row in table] == lengths


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    content = (
        b'{"a": 1, "b": "5", "c": true}\n{"a": 2.5, "d": "2024-01-31", "b": null}\n{"a": 3, "e": 12345678901234567890123, "f": "NA"}\n'
    )
    answer, table = read(tmp_path, content, "a.jsonl")
    assert types(answer) == {"a": "double", "b": "string", "c": "boolean", "d": "timestamp", "e": "string", "f": "string"}
    assert table[2]["e"] == "12345678901234567890123"
    assert table[2]["f"] == "NA"
    assert table[0]["b"] == "5"


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    content = parquet(
        {
            "i": pa.array([1, None], pa.int32()),
            "u": pa.array([1 << 63, 2], pa.uint64()),
            "f": pa.array([1.5, float("nan")], pa.float32()),
            "s": pa.array(["x", "y"]).dictionary_encode(),
            "t": pa.array([0, 1], pa.timestamp("ms", tz="Europe/Berlin")),
            "d": pa.array([0, 1], pa.date32()),
            "b": pa.array([True, None]),
        }
    )
    answer, table = read(tmp_path, content, "a.parquet")
    assert types(answer) == {
        "i": "integer",
        "u": "string",
        "f": "double",
        "s": "string",
        "t": "timestamp",
        "d": "timestamp",
        "b": "boolean",
    }
    assert table[0]["u"] == str(1 << 63)
    profile = {column["name"]: column for column in answer["profile"]["columns"]}
    assert (profile["f"]["nans"], profile["f"]["nulls"], profile["i"]["nulls"]) == (1, 0, 1)
    assert profile["f"]["mean"] == 1.5


def test_pictures_come_with_label_and_path(tmp_path: Path) -> None:
    answer, table = read(
        tmp_path, zipped({**{f"top/{name}": content for name, content in ALBUM.items()}, "__MACOSX/x": b"", "top/.DS_Store": b"x"})
    )
    assert answer["kind"] == "images"
    assert [(row["label"], row["path"]) for row in table] == [("cat", "cat/1.png"), ("cat", "cat/2.png"), ("dog", "dog/1.jpg")]
    assert table[0]["image"] == picture()
    labels = answer["profile"]["columns"][1]
    assert labels["top"] == [{"value": "cat", "count": 2}, {"value": "dog", "count": 1}]


def test_one_class_is_allowed_and_repeated_pictures_are_counted(tmp_path: Path) -> None:
    answer, _ = read(tmp_path, zipped({"cat/1.png": picture(), "cat/2.png": picture()}))
    assert answer["notices"] == ["1 picture repeats another.", "All pictures are of one class; a classifier needs at least two."]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    content = b"a,b\n" + b"".join(b"%d,%f\n" % (number, number / 7) for number in range(3000))
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        read(tmp_path / name, content)
        written.append((tmp_path / name / "all.parquet").read_bytes())
    assert written[0] == written[1]


def test_the_profile_agrees_with_plain_python(tmp_path: Path) -> None:
    values = [float(number % 17) for number in range(1000)]
    content = "x,y\n" + "".join(f"{value},{'a' if value < 5 else 'b'}\n" for value in values)
    answer, _ = read(tmp_path, content.encode())
    x, y = answer["profile"]["columns"]
    mean = sum(values) / 1000
    assert x["mean"] == pytest.approx(mean)
    assert x["std"] == pytest.approx((sum((value - mean) ** 2 for value in values) / 999) ** 0.5)
    assert (x["min"], x["max"], x["distinct"], sum(x["histogram"])) == (0, 16, 17, 1000)
    assert x["quantiles"][2] == sorted(values)[500]
    assert y["top"] == [{"value": "b", "count": sum(v >= 5 for v in values)}, {"value": "a", "count": sum(v < 5 for v in values)}]
    assert answer["profile"]["duplicate_rows"] == 1000 - 17
    json.dumps(answer, allow_nan=False)


def test_figures_of_extreme_numbers_are_finite(tmp_path: Path) -> None:
    answer, _ = read(tmp_path, b"a,b,c\n1e308,inf,9223372036854775807\n-1e308,1,-9223372036854775808\n1.7e308,2,0\n")
    json.dumps(answer, allow_nan=False)
    assert sum(answer["profile"]["columns"][0]["histogram"]) == 3
    assert answer["profile"]["columns"][1]["max"] == 2


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=("Cs",)), max_size=6) | st.sampled_from(
    ["", '"', '""', " x ", "1", "1.5", "-", "a,b", "a\nb", "\r", "'", "\\", "#", "\ufeff"]
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6)))
def test_cells_arrive_as_python_wrote_them(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Arrow reads what `csv` writes, cell by cell: nothing is trimmed, split or joined. A letter keeps every cell text."""
    folder = tmp_path_factory.mktemp("fuzz")
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([f"c{number}" for number in range(len(rows[0]))])
    writer.writerows([[f"t{cell}" for cell in row] for row in rows])
    _, table = read(folder, buffer.getvalue().encode())
    assert [list(row.values()) for row in table] == [[f"t{cell}" for cell in row] for row in rows]


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from('ab1,;"\n\r\t \\'), max_size=40))
def test_any_text_is_read_as_python_reads_it_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = "x,y\nt,t\n" + text
    try:
        expected = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row][1:]
    except csv.Error:
        expected = []
    right = bool(expected) and all(len(row) == 2 for row in expected)
    try:
        _, table = read(folder, content.encode())
    except AppError as error:
        assert not right, error
    else:
        assert right
        assert len(table) == len(expected)
        for row, cells_ in zip(table, expected, strict=True):
            for found, cell in zip(row.values(), cells_, strict=True):
                assert found == (None if cell in MISSING else cell)
