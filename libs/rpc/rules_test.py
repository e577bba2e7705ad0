"""Every kind of rule is checked, in words, at the right path, and fast."""

import time

import pytest
from google.protobuf.message import Message

from lepton.accounts.v1 import accounts_service_pb2
from lepton.common.v1 import resource_pb2
from lepton.compute.v1 import compute_service_pb2
from lepton.data.v1 import data_service_pb2, dataset_pb2
from lepton.marketplace.v1 import marketplace_service_pb2
from lepton.training.v1 import job_pb2, training_service_pb2
from libs.errors import Invalid
from libs.rpc.rules import check, validate


def job(**training: object) -> training_service_pb2.CreateTrainingJobRequest:
    request = training_service_pb2.CreateTrainingJobRequest(
        name="wdbc",
        dataset="wdbc@2",
        task=job_pb2.TASK_CLASSIFICATION,
        target="diagnosis",
        output_model="wdbc",
        model=job_pb2.ModelSpec(architecture=job_pb2.ARCHITECTURE_MLP, init="random"),
        training=job_pb2.TrainingSpec(epochs=30, batch_size=32, **training),
        resources=resource_pb2.Resources(accelerator=resource_pb2.ACCELERATOR_CPU, count=1),
    )
    request.model.params.update({"hidden": [64, 64]})
    return request


def transform(*steps: dataset_pb2.TransformStep) -> data_service_pb2.CreateTransformRequest:
    return data_service_pb2.CreateTransformRequest(name="wdbc", steps=steps)


Step = dataset_pb2.TransformStep


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (job(learning_rate=0), "training.learning_rate", "must be greater than 0, got 0"),
        (job(learning_rate=-1), "training.learning_rate", "must be greater than 0, got -1"),
        (job(learning_rate=float("nan")), "training.learning_rate", "must be a finite number, got nan"),
        (job(learning_rate=float("inf")), "training.learning_rate", "must be a finite number, got inf"),
        (job(learning_rate=11), "training.learning_rate", "must be at most 10, got 11"),
        (job(validation_fraction=0.6), "training.validation_fraction", "must be at most 0.5, got 0.6"),
        (job(optimizer=77), "training.optimizer", "must be one of sgd, adam, adamw, lbfgs; got number 77"),
        (job(early_stopping=job_pb2.EarlyStopping()), "training.early_stopping.patience", "is required"),
        (transform(), "steps", "is required"),
        (
            transform(Step(dedupe={}), Step(filter={"expression": "a"}), Step(cast=dataset_pb2.Cast(type=1))),
            "steps[2].cast.column",
            "is required",
        ),
        (
            transform(Step()),
            "steps[0]",
            "must have one of drop_missing, impute, dedupe, cast, filter, derive, rename, drop_columns, map_values, split",
        ),
        (transform(Step(split=dataset_pb2.SplitRows(test=1))), "steps[0].split.test", "must be less than 1, got 1"),
        (transform(*[Step(dedupe={})] * 101), "steps", "must have at most 100 items, got 101"),
        (transform(Step(map_values=dataset_pb2.MapValues(column="a"))), "steps[0].map_values.values", "is required"),
        (
            data_service_pb2.CreateDatasetRequest(name="Ümlaut"),
            "name",
            'must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter, got "Ümlaut"',
        ),
        (
            data_service_pb2.CreateDatasetRequest(name="a", description="ä" * 2001),
            "description",
            "must have at most 2000 characters, got 2001",
        ),
        (accounts_service_pb2.AuthenticateRequest(), "key_sha256", "must have at least 32 bytes, got 0"),
        (marketplace_service_pb2.CreateReviewRequest(slug="a"), "stars", "must be at least 1, got 0"),
        (compute_service_pb2.RegisterNodeRequest(), "node", "is required"),
    ],
)
def test_what_is_wrong_is_said_in_words(message: Message, field: str, words: str) -> None:
    [violation] = check(message)
    assert (violation.field, violation.message) == (field, words)


def test_nothing_is_wrong_with_the_job_of_the_manual() -> None:
    assert check(job(learning_rate=0.001, seed=7)) == []


def test_infinity_is_found_in_free_form_values() -> None:
    request = job()
    request.model.params.update({"a": {"b": [1, float("-inf")]}})
    assert check(request)[0].field == "model.params.a.b[1]"


def test_lengths_are_characters_not_bytes() -> None:
    assert check(data_service_pb2.CreateDatasetRequest(name="a", description="ä" * 2000)) == []


def test_a_flood_of_violations_is_cut() -> None:
    steps = [Step(cast=dataset_pb2.Cast()) for _ in range(100)] * 3
    assert 100 <= len(check(transform(*steps))) <= 110


def test_validate_raises_all_of_them() -> None:
    with pytest.raises(Invalid, match="and 2 more") as raised:
        validate(data_service_pb2.CreateTransformRequest(output="A", steps=[Step(rename={})]))
    assert [each.field for each in raised.value.errors] == ["output", "steps[0].rename.column", "steps[0].rename.to"]


def test_a_typical_request_takes_microseconds() -> None:
    request = job(learning_rate=0.001, seed=7)
    check(request)
    best = min(_seconds(request) for _ in range(5))
    assert best < 200e-6, f"{best * 1e6:.1f} µs"


def _seconds(request: Message, rounds: int = 200) -> float:
    started = time.perf_counter()
    for _ in range(rounds):
        check(request)
    return (time.perf_counter() - started) / rounds
