import math

import pytest

from libs.modelkit.fit import check_data
from libs.modelkit.spec import ARCHITECTURES, TASKS, check_model, check_training, complete_params

COLUMNS = [
    {"name": "radius", "type": "double", "nullable": False},
    {"name": "diagnosis", "type": "string", "nullable": False},
    {"name": "when", "type": "timestamp", "nullable": True},
]
PICTURES = [{"name": "image", "type": "image", "nullable": False}, {"name": "label", "type": "string", "nullable": False}]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_pass_their_own_checks(architecture):
    task = ARCHITECTURES[architecture].tasks[0]
    assert check_model(task, architecture, complete_params(architecture)) == []


def test_every_task_has_an_architecture():
    assert {task for known in ARCHITECTURES.values() for task in known.tasks} == set(TASKS)


def test_numbers_of_a_protobuf_struct_are_brought_to_their_types():
    assert complete_params("mlp", {"hidden": [8.0, 4.0]})["hidden"] == [8, 4]


@pytest.mark.parametrize(
    ("task", "architecture", "params", "field", "words"),
    [
        ("classification", "mpl", {}, "model.architecture", "did you mean mlp"),
        ("clasification", "mlp", {}, "task", "classification"),
        ("classification", "cnn", {}, "model.architecture", "mlp or linear"),
        ("image_classification", "mlp", {}, "model.architecture", "cnn does"),
        ("classification", "mlp", {"hiden": [8]}, "model.params.hiden", "did you mean hidden"),
        ("classification", "mlp", {"hidden": [0]}, "model.params.hidden", "from 1 to 8192"),
        ("classification", "mlp", {"hidden": 64}, "model.params.hidden", "a list"),
        ("classification", "mlp", {"dropout": math.nan}, "model.params.dropout", "from 0 to 0.9"),
        ("classification", "mlp", {"activation": "rellu"}, "model.params.activation", "one of"),
        ("classification", "transformer", {"width": 10, "heads": 4}, "model.params.width", "such as 12"),
        ("image_classification", "cnn", {"channels": []}, "model.params.channels", "at least one"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(task, architecture, params, field, words):
    (error,) = check_model(task, architecture, params)
    assert error.field == field
    assert words in error.message


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, "fast", True, 11, [1]])
def test_learning_rates_that_are_none(rate):
    (error,) = check_training({"learning_rate": rate})
    assert error.field == "training.learning_rate"
    assert "number above 0" in error.message


def test_all_that_is_wrong_with_a_training_is_said_at_once():
    wrong = {"epochs": 0, "optimizer": "adamm", "batchsize": 3, "early_stopping": {"patience": 0}, "test_fraction": 0.9}
    assert {error.field for error in check_training(wrong)} == {
        "training.epochs",
        "training.optimizer",
        "training.batchsize",
        "training.early_stopping.patience",
        "training.test_fraction",
    }


def profile(rows=100, **of_target):
    return {"rows": rows, "columns": [{"name": "diagnosis", "nulls": 0, "nans": 0, "distinct": 2, **of_target}]}


def test_data_that_fits():
    assert check_data("classification", "diagnosis", [], COLUMNS, profile()) == []
    assert check_data("image_classification", "", [], PICTURES) == []
    assert check_data("text_generation", "diagnosis", [], COLUMNS, profile(distinct=100)) == []


@pytest.mark.parametrize(
    ("task", "target", "features", "columns", "figures", "field", "words"),
    [
        ("classification", "diagnossis", [], COLUMNS, None, "target", "did you mean 'diagnosis'"),
        ("classification", "", [], COLUMNS, None, "target", "missing"),
        ("classification", "diagnosis", ["raduis"], COLUMNS, None, "features[0]", "did you mean 'radius'"),
        ("classification", "diagnosis", ["diagnosis"], COLUMNS, None, "features[0]", "leave it out"),
        ("regression", "diagnosis", [], COLUMNS, None, "target", "use classification"),
        ("image_classification", "diagnosis", [], COLUMNS, None, "task", "needs pictures"),
        ("classification", "label", [], PICTURES, None, "task", "use image_classification"),
        ("text_classification", "when", [], [COLUMNS[0], COLUMNS[2]], None, "task", "column of texts"),
        ("text_generation", "radius", [], COLUMNS, None, "target", "column of texts"),
        ("text_generation", "diagnosis", ["radius"], COLUMNS, None, "features", "no other"),
        ("text_generation", "diagnosis", [], COLUMNS, profile(nulls=1), "target", "1 missing or NaN"),
        ("classification", "diagnosis", [], COLUMNS, profile(distinct=1), "target", "one class only"),
        ("classification", "diagnosis", [], COLUMNS, profile(nans=2, nulls=1), "target", "3 missing or NaN"),
        ("classification", "diagnosis", [], COLUMNS, profile(rows=3, distinct=5), "target", "5 classes and there are only 3 rows"),
        ("classification", "diagnosis", [], COLUMNS, profile(rows=0), "dataset", "no rows"),
        ("classification", "diagnosis", [], COLUMNS[1:2], None, "features", "no column besides"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(task, target, features, columns, figures, field, words):
    errors = check_data(task, target, features, columns, figures)
    assert [error.field for error in errors] == [field]
    assert words in errors[0].message
