"""Parts hold every row once, clashes are seen before anything runs, and each row of the table has one next step."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.deployment.domain.batch import (
    MAX_PARTS,
    BatchState,
    Column,
    Field,
    Step,
    added,
    clashes,
    kept,
    next_step,
    part_rows,
    parts_of,
    pause_after,
    wrong_inputs,
)

splits = st.lists(st.integers(1, 10_000), min_size=1, max_size=4)


@given(splits, st.integers(1, 3000))
def test_parts_hold_every_row_once_in_order_and_are_few(rows: list[int], least: int) -> None:
    named = [(f"s{place}", count) for place, count in enumerate(rows)]
    size = part_rows(sum(rows), least)
    parts = parts_of(named, size)
    assert [part.number for part in parts] == list(range(len(parts)))
    covered = [(part.split, row) for part in parts for row in range(part.start, part.stop)]
    assert covered == [(name, row) for name, count in named for row in range(count)]
    assert all(0 < part.rows <= size for part in parts)
    assert len(parts) <= MAX_PARTS + len(rows)


INPUTS = [Field("age", "double"), Field("city", "string", optional=True)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([Column("age", "integer"), Column("city", "string", nullable=True)], ()),
        ([Column("age", "boolean"), Column("city", "timestamp")], ()),
        ([Column("age", "double")], ()),
        ([Column("agee", "double")], ("has no column 'age', which the model reads; is 'agee' meant to be it?",)),
        ([Column("age", "double", nullable=True)], ("some rows of d@1 lack 'age'",)),
        ([Column("age", "string"), Column("city", "double")], ("'age' of d@1 is string", "'city' of d@1 is double")),
    ],
)
def test_columns_that_the_model_cannot_read_are_named(columns: list[Column], words: tuple[str, ...]) -> None:
    found = [violation.message for violation in wrong_inputs(INPUTS, columns, "d@1")]
    assert len(found) == len(words)
    assert all(word in message for word, message in zip(words, found, strict=True))


def test_pictures_are_never_copied() -> None:
    columns = [Column("image", "image"), Column("label", "string")]
    assert kept(columns, []) == ([columns[1]], [])
    assert "holds pictures" in kept(columns, ["image"])[1][0].message


@pytest.mark.parametrize(
    ("labels", "probabilities", "column", "words"),
    [
        (("a", "b"), True, "id", ()),
        (("a", "A"), True, "id", ("there is a column 'probability_A' already; leave probabilities out",)),
        (("a", "A"), False, "id", ()),
        (("a", "b"), True, "Prediction", ("there is a column 'prediction' already; leave it out",)),
        (("a\n", "b"), True, "id", ("no column can be called 'probability_a\\n'",)),
        (tuple(map(str, range(2000))), True, "id", ("the result would have 2002 columns",)),
    ],
)
def test_names_that_clash_are_seen(labels: tuple[str, ...], probabilities: bool, column: str, words: tuple[str, ...]) -> None:
    outputs = [Field("prediction", "string", labels=labels), Field("probabilities", "double", labels=labels)]
    found = [violation.message for violation in clashes([Column(column, "string")], added(outputs, probabilities))]
    assert len(found) == len(words)
    assert all(word in message for word, message in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((), ["y"]),
        ((2,), ["y_0", "y_1"]),
        ((2, 2), ["y_0_0", "y_0_1", "y_1_0", "y_1_1"]),
    ],
)
def test_what_has_a_shape_is_a_column_a_cell(shape: tuple[int, ...], names: list[str]) -> None:
    assert added([Field("y", "integer", optional=True, shape=shape)], False) == [Column(name, "integer", True) for name in names]


def test_shapes_that_no_table_holds_take_bounded_work() -> None:
    outputs = [Field(f"y{number}", "double", shape=(1 << 20,) * 8) for number in range(1000)]
    assert "2000 are allowed" in clashes([], added(outputs, True))[0].message


def test_what_takes_many_values_reads_no_column() -> None:
    (wrong,) = wrong_inputs([Field("x", "double", shape=(2, 3))], [Column("x", "double")], "d@1")
    assert wrong.field == "model" and "'x' takes 6 values a row" in wrong.message


@dataclass
class Job:
    state: str
    allocation_id: str = ""
    quota_held: bool = True
    create_time: float = 0.0
    not_before: float = 0.0
    lease_holder: str = ""
    lease_expires: float = 0.0


@pytest.mark.parametrize(
    ("job", "step"),
    [
        (Job(BatchState.RESERVING, create_time=900), Step.NOTHING),
        (Job(BatchState.RESERVING, create_time=800), Step.WITHDRAW),
        (Job(BatchState.QUEUED), Step.ASK),
        (Job(BatchState.QUEUED, not_before=1001), Step.NOTHING),
        (Job(BatchState.RUNNING, lease_holder="w", lease_expires=1001), Step.NOTHING),
        (Job(BatchState.RUNNING, lease_holder="w", lease_expires=999), Step.BURY),
        (Job(BatchState.CANCELLING, lease_holder="w", lease_expires=1001), Step.NOTHING),
        (Job(BatchState.CANCELLING, lease_holder="w", lease_expires=999), Step.BURY),
        (Job(BatchState.CANCELLING), Step.CANCEL),
        (Job(BatchState.REGISTERING), Step.LOOK),
        (Job(BatchState.FAILED), Step.RELEASE),
        (Job(BatchState.CANCELLED, allocation_id="al-1", quota_held=False), Step.RELEASE),
        (Job(BatchState.SUCCEEDED, quota_held=False), Step.NOTHING),
    ],
)
def test_each_row_has_one_next_step(job: Job, step: Step) -> None:
    assert next_step(job, 1000.0) is step


def test_pauses_grow() -> None:
    assert [pause_after(failures) for failures in range(4)] == [0, 1, 2, 4]
