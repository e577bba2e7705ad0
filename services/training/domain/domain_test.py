"""Moves, verdicts, steps and admission: what is decided without a database."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import CATALOGUE, Conflict
from services.training.domain.admission import (
    DataFacts,
    InitFacts,
    NodeFacts,
    check,
    complete,
    complete_resources,
    complete_training,
    used_metric,
)
from services.training.domain.retry import MAX_CRASHES, MAX_HANGS, MAX_LOSSES, Outcome, Tally, judge, pause_before
from services.training.domain.states import MOVES, State, require_move
from services.training.domain.step import Step, next_step

COLUMNS = [
    {"name": "a", "type": "double", "nullable": False},
    {"name": "text", "type": "string", "nullable": False},
    {"name": "label", "type": "string", "nullable": False},
]
PROFILE = {"rows": 100, "columns": [{"name": "a", "distinct": 90}, {"name": "text", "distinct": 90}, {"name": "label", "distinct": 2}]}


@dataclass
class Row:
    state: str = "queued"
    allocation_id: str = ""
    not_before: float = 0.0
    lease_holder: str = ""
    lease_expires: float = 0.0


def spec(**changes: object) -> dict[str, object]:
    model = {"architecture": "linear", "params": {}, "init": ""}
    return {"task": "classification", "target": "label", "features": [], "model": model, "training": {}, "resources": {}, **changes}


def test_every_state_can_end_and_no_end_can_be_left() -> None:
    for state in State:
        reachable, new = {state}, {state}
        while new:
            new = {after for before in new for after in MOVES[before]} - reachable
            reachable |= new
        assert any(after.ended for after in reachable)
        assert not state.ended or reachable == {state}


@given(st.lists(st.sampled_from(State), min_size=2))
def test_a_row_of_moves_is_refused_at_the_first_wrong_one(states: list[State]) -> None:
    for before, after in pairwise(states):
        if after in MOVES[before]:
            require_move(before, after)
        else:
            with pytest.raises(Conflict, match=before):
                require_move(before, after)
            return


def test_who_asked_for_the_end_gets_the_end() -> None:
    assert MOVES[State.CANCELLING] == {State.CANCELLED}


@given(st.lists(st.sampled_from(Outcome), max_size=60))
def test_bad_ends_without_progress_end_a_job_sooner_or_later(outcomes: list[Outcome]) -> None:
    tally = Tally()
    for outcome in outcomes:
        verdict = judge(outcome, tally, "it broke")
        tally = verdict.tally
        if verdict.error:
            assert verdict.error["code"] in CATALOGUE
            assert tally.crashes > MAX_CRASHES or tally.hangs > MAX_HANGS or tally.losses > MAX_LOSSES
            return
        assert 0 <= verdict.pause <= 60
    assert (tally.crashes <= MAX_CRASHES, tally.hangs <= MAX_HANGS, tally.losses <= MAX_LOSSES) == (True, True, True)


def test_progress_begins_the_count_again_but_for_hangs() -> None:
    assert Tally(3, 9, 1).after_progress() == Tally(0, 0, 1)
    assert [pause_before(retry) for retry in (1, 2, 3, 50)] == [1.0, 2.0, 4.0, 30.0]


@pytest.mark.parametrize(
    ("row", "step"),
    [
        (Row(), Step.ASK),
        (Row(not_before=11), Step.NOTHING),
        (Row("starting", "a"), Step.HINT),
        (Row("starting", "a", not_before=11), Step.NOTHING),
        (Row("starting", "a", lease_holder="w", lease_expires=11), Step.NOTHING),
        (Row("running", "a", lease_holder="w", lease_expires=9), Step.BURY),
        (Row("running", "", lease_holder="w", lease_expires=9), Step.BURY),
        (Row("cancelling", "a", lease_holder="w", lease_expires=11), Step.NOTHING),
        (Row("cancelling", "a", lease_holder="w", lease_expires=9), Step.CANCEL),
        (Row("cancelling", "a"), Step.CANCEL),
        (Row("succeeded", "a"), Step.RELEASE),
        (Row("failed"), Step.NOTHING),
    ],
)
def test_the_next_step(row: Row, step: Step) -> None:
    assert next_step(row, 10) is step


@given(st.sampled_from(State), st.sampled_from(["", "a"]), st.floats(0, 20), st.sampled_from(["", "w"]), st.floats(0, 20), st.floats(0, 20))
def test_a_live_worker_is_never_interfered_with(
    state: State, allocation: str, not_before: float, holder: str, expires: float, now: float
) -> None:
    step = next_step(Row(state, allocation, not_before, holder, expires), now)
    if holder and expires > now and not state.ended:
        assert step is Step.NOTHING


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = spec(
        target="lable",
        features=["aa"],
        model={"architecture": "mlp", "params": {"hiden": [3]}, "init": ""},
        training={"learning_rate": 0, "optimizer": "adamm"},
        resources={"accelerator": "gpu", "memory_bytes": 1 << 50},
    )
    errors = {error.field: error for error in check(wrong, DataFacts(COLUMNS, PROFILE), None, [NodeFacts(4000, 8 << 30, {})])}
    assert set(errors) == {
        "target",
        "features[0]",
        "model.params.hiden",
        "training.learning_rate",
        "training.optimizer",
        "resources.accelerator",
        "resources.memory_bytes",
    }
    assert errors["target"].suggestions[0] == "label"
    assert errors["model.params.hiden"].suggestions == ("hidden",)


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"count": 5}, "resources.count"),
        ({"accelerator": "gpu", "count": 3}, "resources.count"),
        ({"accelerator": "tpu"}, "resources.accelerator"),
        ({"cpu_millis": 5000, "accelerator": "gpu"}, "resources.cpu_millis"),
    ],
)
def test_what_no_node_could_hold_is_refused(resources: dict[str, object], field: str) -> None:
    errors = check(spec(resources=resources), None, None, [NodeFacts(4000, 8 << 30, {"gpu": 2}), NodeFacts(2000, 4 << 30, {})])
    assert [error.field for error in errors] == [field]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"training": {"workers": 0}}, "training.workers", "from 1 to 64"),
        ({"training": {"workers": 65}}, "training.workers", "from 1 to 64"),
        ({"training": {"workers": 3}}, "training.workers", "room for 2 with these resources"),
        ({"training": {"workers": 2, "optimizer": "lbfgs"}}, "training.optimizer", "use adamw"),
        ({"training": {"workers": 2, "batch_size": 1}}, "training.workers", "batches of 1 rows"),
        ({"training": {"workers": 2}, "resources": {"accelerator": "gpu", "count": 2}}, "resources.count", "a worker trains on one gpu"),
    ],
)
def test_what_workers_cannot_share_is_refused(changes: dict[str, object], field: str, words: str) -> None:
    (error,) = check(spec(**changes), DataFacts(COLUMNS, PROFILE), None, [NodeFacts(2000, 8 << 30, {"gpu": 4})])
    assert error.field == field
    assert words in error.message


def test_fewer_rows_than_workers_are_refused() -> None:
    (error,) = check(spec(training={"workers": 4}), DataFacts(COLUMNS, {**PROFILE, "rows": 3}), None, [])
    assert "4 workers cannot share 3 rows" in error.message


def test_machines_of_a_cluster_have_room_together() -> None:
    apart = [NodeFacts(2000, 8 << 30, {}), NodeFacts(2000, 8 << 30, {})]
    together = [NodeFacts(2000, 8 << 30, {}, "pool"), NodeFacts(2000, 8 << 30, {}, "pool")]
    assert [e.field for e in check(spec(training={"workers": 4}), None, None, apart)] == ["training.workers"]
    assert check(spec(training={"workers": 4}), None, None, together) == []
    assert check(spec(training={"workers": 5}), None, None, together)[0].suggestions == ("4",)


def test_weights_start_only_the_same_kind_of_model() -> None:
    data = DataFacts(COLUMNS, PROFILE)
    init = InitFacts("m@1", "classification", "mlp", {"hidden": [8]}, ["a", "text"])
    model = {"architecture": "mlp", "params": {}, "init": "m@1"}
    assert check(spec(model=model), data, init, []) == []
    assert complete(spec(model=model), data, init)["model"]["params"]["hidden"] == [8]
    assert [e.field for e in check(spec(model={**model, "params": {"hidden": [9]}}), data, init, [])] == ["model.params.hidden"]
    assert [e.field for e in check(spec(model={**model, "architecture": "linear"}), data, init, [])] == ["model.init"]
    assert [e.field for e in check(spec(model=model, features=["a"]), data, init, [])] == ["features"]


def test_defaults_are_all_filled_in() -> None:
    full = complete(spec(), DataFacts(COLUMNS, PROFILE), None)
    assert full["features"] == ["a", "text"]
    assert full["model"] == {"architecture": "linear", "params": {"tolerance": 0.0}, "init": "random"}
    assert full["training"]["learning_rate"] == 0.001
    assert full["resources"] == {"accelerator": "cpu", "count": 1, "memory_bytes": 2 << 30, "cpu_millis": 1000}
    assert complete_training({"optimizer": "sgd"})["learning_rate"] == 0.05
    assert complete_training({"early_stopping": {"patience": 2}})["validation_fraction"] == 0.1


def test_what_a_second_uses() -> None:
    assert used_metric(complete_resources({"count": 2}), 1) == ("cpu_seconds", 2.0)
    assert used_metric(complete_resources({"accelerator": "gpu", "count": 2}), 3) == ("gpu_seconds", 6.0)
