"""Steps over small tables: what they do, what they say when they are wrong, and that SQL sees nothing but its row."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from libs.errors import AppError
from services.data.engine.ingest import ingest
from services.data.engine.limits import Limits
from services.data.engine.sample_files import ALBUM, picture, zipped
from services.data.engine.transform import check, transform

LIMITS = Limits(threads=1)
CSV = b"""id,diagnosis,size,when
1,M,1.5,2024-01-01
2, m ,,2024-01-02
3,B,3.5,2024-01-03
3,B,3.5,2024-01-03
5,?,9.5,2024-01-05
6,b,2.5,2024-01-06
"""


class Source:
    """An ingested upload, and its transforms."""

    def __init__(self, folder: Path, content: bytes, name: str) -> None:
        self.folder = folder
        self.runs = 0
        (folder / "upload").write_bytes(content)
        self.version = ingest({"path": str(folder / "upload"), "file_name": name}, folder, LIMITS)
        self.splits = [{"name": split["name"], "path": str(folder / split["file"])} for split in self.version["splits"]]

    def run(self, *steps: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        self.runs += 1
        target = self.folder / f"run{self.runs}"
        target.mkdir()
        check({"columns": self.version["columns"], "steps": steps}, self._empty(target), LIMITS)
        answer = transform({"columns": self.version["columns"], "splits": self.splits, "steps": steps}, target, LIMITS)
        self.splits_made = [{"name": split["name"], "path": str(target / split["file"])} for split in answer["splits"]]
        return answer, {split["name"]: pq.read_table(target / split["file"]).to_pylist() for split in answer["splits"]}

    def _empty(self, target: Path) -> Path:
        folder = target / "check"
        folder.mkdir()
        return folder

    def check(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        self.runs += 1
        target = self.folder / f"run{self.runs}"
        target.mkdir()
        return list(check({"columns": self.version["columns"], "steps": steps}, target, LIMITS)["columns"])

    def after(self) -> "Source":
        """The version that the last run made, as a source."""
        other = object.__new__(Source)
        other.__dict__ = {**self.__dict__, "splits": self.splits_made}
        return other


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path, CSV, "a.csv")


@pytest.fixture
def album(tmp_path: Path) -> Source:
    return Source(tmp_path, zipped({**ALBUM, "dog/copy.jpg": ALBUM["dog/1.jpg"], "bird/1.png": picture((4, 4))}), "a.zip")


def test_the_usual_way(source: Source) -> None:
    answer, splits = source.run(
        {"drop_missing": {"columns": ["diagnosis"]}},
        {"dedupe": {}},
        {"impute": {"strategy": "median"}},
        {"derive": {"column": "diagnosis", "expression": "upper(trim(diagnosis))"}},
        {"map_values": {"column": "diagnosis", "values": {"M": "malignant", "B": "benign"}}},
        {"filter": {"expression": "size > 0 AND diagnosis IN ('malignant', 'benign')"}},
        {"cast": {"column": "id", "type": "string"}},
        {"rename": {"column": "id", "to": "patient"}},
        {"drop_columns": {"columns": ["when"]}},
    )
    assert splits["all"] == [
        {"patient": "1", "diagnosis": "malignant", "size": 1.5},
        {"patient": "2", "diagnosis": "malignant", "size": 2.5},
        {"patient": "3", "diagnosis": "benign", "size": 3.5},
        {"patient": "6", "diagnosis": "benign", "size": 2.5},
    ]
    assert answer["notices"] == ["2 of 6 rows were left out."]
    assert not any(column["nullable"] for column in answer["columns"])


def test_impute_strategies(source: Source) -> None:
    def filled(**spec: Any) -> Any:
        return source.run({"impute": spec})[1]["all"]

    assert filled(columns=["size"], strategy="mean")[1]["size"] == pytest.approx(4.1)
    assert filled(columns=["size"], strategy="most_frequent")[1]["size"] == 3.5
    assert filled(columns=["diagnosis"], strategy="most_frequent")[4]["diagnosis"] == "B"
    assert filled(columns=["size"], strategy="constant", value=7)[1]["size"] == 7
    assert filled(strategy="constant", value="none of these")[4]["diagnosis"] == "none of these"
    assert filled(strategy="mean")[4]["diagnosis"] is None


def test_figures_come_of_the_training_rows(source: Source) -> None:
    source.run({"derive": {"column": "size", "expression": "size * 1"}}, {"split": {"test": 0.5, "seed": 3}})
    again = source.after()
    _, splits = again.run({"impute": {"columns": ["size"], "strategy": "mean"}})
    known = [row["size"] for row in splits["train"] if row["id"] != 2]
    every = [row["size"] for rows in splits.values() for row in rows if row["id"] == 2]
    assert every == [pytest.approx(sum(known) / len(known))]


@pytest.mark.parametrize("stratify", ["", "label"])
def test_splits_have_their_shares(tmp_path: Path, stratify: str) -> None:
    content = "x,label\n" + "".join(f"{number},{'rare' if number % 10 == 0 else 'common'}\n" for number in range(200))
    source = Source(tmp_path, content.encode(), "a.csv")
    step = {"split": {"test": 0.2, "validation": 0.1, "seed": "7", "stratify": stratify}}
    answer, splits = source.run(step)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 140, "validation": 20, "test": 40}
    assert sorted(row["x"] for rows in splits.values() for row in rows) == list(range(200))
    if stratify:
        assert [sum(row["label"] == "rare" for row in splits[name]) for name in ("train", "validation", "test")] == [14, 2, 4]
    assert source.run(step)[1] == splits
    assert source.run({"split": {"test": 0.2, "validation": 0.1, "seed": 8, "stratify": stratify}})[1] != splits
    assert [split["name"] for split in answer["splits"]] == ["train", "validation", "test"]


def test_the_same_steps_give_the_same_bytes(source: Source) -> None:
    steps = [{"dedupe": {}}, {"split": {"test": 0.4, "seed": 1}}]
    written = []
    for _ in range(2):
        source.run(*steps)
        written.append([Path(split["path"]).read_bytes() for split in source.splits_made])
    assert written[0] == written[1]


def test_casts_lose_nothing_silently(source: Source) -> None:
    with pytest.raises(AppError) as caught:
        source.run({"cast": {"column": "diagnosis", "type": "double"}})
    assert caught.value.errors[0].message == "row 1 of the source holds 'M', which is not a number"
    assert caught.value.meta == {"rows": 5}
    with pytest.raises(AppError, match=r"row 1 of the source holds '1\.5', which is not a whole number"):
        source.run({"cast": {"column": "size", "type": "integer"}})
    _, splits = source.run({"cast": {"column": "size", "type": "integer", "lenient": True}})
    assert {row["size"] for row in splits["all"]} == {None}
    _, splits = source.run({"cast": {"column": "id", "type": "double"}}, {"cast": {"column": "id", "type": "integer"}})
    assert [row["id"] for row in splits["all"]] == [1, 2, 3, 3, 5, 6]


@pytest.mark.parametrize(
    ("step", "field", "words"),
    [
        ({"cast": {"column": "diagnosys", "type": "double"}}, "cast.column", "did you mean diagnosis?"),
        ({"cast": {"column": "when", "type": "double"}}, "cast.type", "derive"),
        ({"drop_missing": {"columns": ["id", "sise"]}}, "drop_missing.columns[1]", "did you mean size?"),
        ({"dedupe": {"columns": ["x"]}}, "dedupe.columns[0]", "there are id, diagnosis"),
        ({"impute": {"columns": ["diagnosis"], "strategy": "mean"}}, "impute.columns[0]", "which have no mean"),
        ({"impute": {"strategy": "constant"}}, "impute.value", "needs a value"),
        ({"impute": {"strategy": "mean", "value": 3}}, "impute.value", "goes with the strategy constant"),
        ({"impute": {"columns": ["size"], "strategy": "constant", "value": "big"}}, "impute.value", "'big' is not a number"),
        ({"impute": {"columns": ["when"], "strategy": "constant", "value": "soon"}}, "impute.value", "is not a time"),
        ({"impute": {}}, "impute.strategy", "say how"),
        ({"rename": {"column": "id", "to": "SIZE"}}, "rename.to", "column 'size' already"),
        ({"rename": {"column": "id", "to": ""}}, "rename.to", "no name"),
        ({"drop_columns": {"columns": ["id", "diagnosis", "size", "when"]}}, "drop_columns.columns", "all columns"),
        ({"map_values": {"column": "size", "values": {"1": "2"}}}, "map_values.column", "cast it to string"),
        ({"split": {"test": 0.6, "validation": 0.5}}, "split.test", "less than 1"),
        ({"split": {}}, "split.test", "e.g. 0.2"),
        ({"split": {"test": 0.2, "stratify": "label"}}, "split.stratify", "no column 'label'"),
        ({"derive": {"column": "Size", "expression": "1"}}, "derive.column", "differ in case"),
        ({"derive": {"column": "__lepton_row", "expression": "1"}}, "derive.column", "keeps for itself"),
        ({}, "", "name one of"),
    ],
)
def test_wrong_steps_are_answered_without_rows(source: Source, step: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(AppError) as caught:
        source.check({"dedupe": {}}, step)
    assert caught.value.errors[0].field == f"steps[1]{'.' if field else ''}{field}"
    assert words in caught.value.detail
    assert caught.value.code == "invalid_spec"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "empty"),
        ("sise > 1", 'did you mean "size"?'),
        ("size >", "ends too early"),
        ("size > > 3", "character 8"),
        ("size 3", "cannot be read at character 6"),
        ('diagnosis = "M"', "single quotes: 'M'"),
        ("sum(size) > 3", "needs many rows"),
        ("count(*) > 3", "needs many rows"),
        ("row_number() OVER () > 1", "window function"),
        ("size IN (SELECT 1)", "query of its own"),
        ("EXISTS (FROM step_0)", "query of its own"),
        ("size = (SELECT max(size) FROM step_0)", "query of its own"),
        ("size > 1; DROP TABLE step_0", "cannot be read"),
        ("1) FROM step_0; DROP TABLE step_0; SELECT (1", "cannot be read"),
        ("1) FROM step_0; SELECT (1", "one expression"),
        ("1) AS value FROM step_0 UNION SELECT (1", "one expression"),
        ("size > 1) AS value FROM step_0 --", "ends too early"),
        ("1) AS value FROM step_0 WHERE (TRUE", "ends too early"),
        ("size, id", "several values"),
        ("size AS big", "cannot be read"),
        ("*", "name the columns"),
        ("COLUMNS('.*') > 1", "name the columns"),
        ("$1 > 2", "parameter"),
        ("step_0.size > 1", "without a table"),
        ("rowid > 1", "no column 'rowid'"),
        ("__lepton_row > 1", "no column '__lepton_row'"),
        ("read_text('/etc/passwd') = ''", "not allowed"),
        ("getenv('HOME') = ''", "not allowed"),
        ("current_setting('home_directory') = ''", "leave it out"),
        ("random() > 0.5", "reproducible"),
        ('now() > "when"', "reproducible"),
        ('current_date > "when"', "reproducible"),
        ("lowr(diagnosis) = 'm'", "did you mean lower"),
        ("diagnosis > 3", "cast one of them"),
        ("[size]", "no column can hold"),
        ("NULL", "CAST(NULL AS DOUBLE)"),
        ("list_transform([1], lambda x: x)[1] > 0", "lambda"),
        ("nextval('x') > 1", "reproducible"),
        ("pg_sleep(10)", "not allowed"),
    ],
)
def test_expressions_see_one_row(source: Source, expression: str, words: str) -> None:
    with pytest.raises(AppError) as caught:
        source.check({"filter": {"expression": expression}})
    assert words in caught.value.detail
    assert caught.value.errors[0].field == "steps[0].filter.expression"


@pytest.mark.parametrize(
    ("expression", "type_"),
    [
        ("size * 2 -- twice", "double"),
        ("id + 1", "integer"),
        ("id / 2", "double"),
        ("CASE WHEN size > 3 THEN 'big' ELSE 'small' END", "string"),
        ("size BETWEEN 1 AND 2 OR diagnosis LIKE 'M%'", "boolean"),
        ("date_trunc('month', \"when\")", "timestamp"),
        ('extract(year FROM "when")', "integer"),
        ("coalesce(size, 0) ** 2", "double"),
        ("split_part(diagnosis, ',', 1)", "string"),
        ("nullif(id, 3)", "integer"),
        ("regexp_replace(trim(diagnosis), '[a-z]', '')", "string"),
        ("TRY_CAST(diagnosis AS INTEGER)", "integer"),
        ("1.5", "double"),
        ("ln(size)", "double"),
        ("DATE '2024-01-01'", "timestamp"),
    ],
)
def test_derived_columns_have_the_type_of_their_expression(source: Source, expression: str, type_: str) -> None:
    answer, _ = source.run({"derive": {"column": "made", "expression": expression}})
    assert answer["columns"][-1]["type"] == type_


def test_what_only_rows_show_names_the_step(source: Source) -> None:
    with pytest.raises(AppError, match=r"steps\[0\].filter: leaves no row"):
        source.run({"filter": {"expression": "size > 1e9"}})
    with pytest.raises(AppError, match="TRY_CAST"):
        source.run({"derive": {"column": "x", "expression": "CAST(diagnosis AS INTEGER)"}})
    with pytest.raises(AppError, match="no row of 6 is left for test"):
        source.run({"split": {"test": 0.01}})


def test_stratifying_by_a_column_of_many_values_is_refused(tmp_path: Path) -> None:
    source = Source(tmp_path, b"x\n" + b"".join(b"%d\n" % number for number in range(99)), "a.csv")
    with pytest.raises(AppError, match="few values"):
        source.run({"split": {"test": 0.2, "stratify": "x"}})


def test_a_split_comes_last(source: Source) -> None:
    with pytest.raises(AppError, match="must be the last step"):
        source.check({"split": {"test": 0.5}}, {"dedupe": {}})


def test_pictures_are_filtered_deduped_relabelled_and_split(album: Source) -> None:
    answer, splits = album.run(
        {"dedupe": {}},
        {"filter": {"expression": "label <> 'bird' AND path NOT LIKE '%.gif'"}},
        {"map_values": {"column": "label", "values": {"cat": "feline"}}},
        {"derive": {"column": "label", "expression": "upper(label)"}},
        {"split": {"test": 0.34, "seed": 1, "stratify": "label"}},
    )
    assert answer["kind"] == "images"
    rows = splits["train"] + splits["test"]
    assert sorted((row["label"], row["path"]) for row in rows) == [("DOG", "dog/1.jpg"), ("FELINE", "cat/1.png"), ("FELINE", "cat/2.png")]
    assert {row["path"]: row["image"] for row in rows} == {name: ALBUM[name] for name in ("cat/1.png", "cat/2.png", "dog/1.jpg")}


@pytest.mark.parametrize(
    "step",
    [
        {"filter": {"expression": "length(image) > 3"}},
        {"filter": {"expression": "octet_length(image) > 3"}},
        {"rename": {"column": "label", "to": "x"}},
        {"drop_columns": {"columns": ["image"]}},
        {"cast": {"column": "image", "type": "string"}},
        {"derive": {"column": "image", "expression": "'x'"}},
        {"impute": {"columns": ["image"], "strategy": "most_frequent"}},
        {"map_values": {"column": "image", "values": {"a": "b"}}},
        {"split": {"test": 0.5, "stratify": "image"}},
    ],
)
def test_no_step_looks_into_pictures(album: Source, step: dict[str, Any]) -> None:
    with pytest.raises(AppError) as caught:
        album.check(step)
    assert caught.value.code == "invalid_spec"
