"""JSON goes in and comes out as people expect, and nothing but Invalid is ever raised."""

import math
from typing import Any, cast

import orjson
import pytest
from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton.accounts.v1 import workspace_pb2
from lepton.data.v1 import data_service_pb2, dataset_pb2
from lepton.training.v1 import job_pb2, model_pb2, training_service_pb2
from libs.errors import Invalid
from libs.rpc.json_codec import dump, from_text, loads, parse

JOB = {
    "name": "wdbc",
    "dataset": "wdbc@2",
    "task": "classification",
    "target": "diagnosis",
    "output_model": "wdbc",
    "model": {"architecture": "mlp", "params": {"hidden": [64, 64]}, "init": "random"},
    "training": {"epochs": 30, "batch_size": 32, "learning_rate": 0.001, "optimizer": "adamw", "seed": 7},
    "resources": {"accelerator": "cpu", "count": 1},
}
CreateJob = training_service_pb2.CreateTrainingJobRequest
CreateTransform = data_service_pb2.CreateTransformRequest


def test_the_job_of_the_manual() -> None:
    request = parse(CreateJob, JOB)
    assert request.task == job_pb2.TASK_CLASSIFICATION
    assert request.training.learning_rate == 0.001
    assert list(request.model.params["hidden"]) == [64, 64]
    assert dump(request)["model"] == JOB["model"]
    assert parse(CreateJob, dump(request)) == request


def test_what_is_there_when_nothing_is_set() -> None:
    assert dump(job_pb2.TrainingSpec()) == {
        "epochs": 0,
        "batch_size": 0,
        "optimizer": "unspecified",
        "seed": 0,
        "double_precision": False,
        "time_limit_seconds": 0,
    }
    assert dump(model_pb2.Signature()) == {"inputs": [], "outputs": []}
    assert "error" not in dump(dataset_pb2.DatasetVersion())


def test_values_of_every_kind() -> None:
    job = job_pb2.TrainingJob(
        task=job_pb2.TASK_IMAGE_CLASSIFICATION,
        metrics={"accuracy": 0.5, "loss": math.nan},
        create_time=timestamp_pb2.Timestamp(seconds=1, nanos=500_000_000),
        training=job_pb2.TrainingSpec(seed=2**64 - 1),
    )
    shown = dump(job)
    assert shown["task"] == "image_classification"
    assert shown["metrics"] == {"accuracy": 0.5, "loss": None}
    assert shown["create_time"] == "1970-01-01T00:00:01.500Z"
    assert shown["training"]["seed"] == 2**64 - 1
    orjson.dumps(shown)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "is not a field here; did you mean learning_rate?"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate", 'must be a number, got the text "fast"'),
        ({"training": {"learning_rate": True}}, "training.learning_rate", "must be a number, got true"),
        ({"training": {"learning_rate": math.inf}}, "training.learning_rate", "must be a finite number, got inf"),
        ({"training": {"learning_rate": 10**400}}, "training.learning_rate", "must be a finite number, got a very large number"),
        ({"training": {"epochs": 1.5}}, "training.epochs", "must be a whole number, got 1.5"),
        ({"training": {"epochs": -1}}, "training.epochs", "must be a whole number from 0 to 4294967295, got -1"),
        ({"training": {"epochs": 10**400}}, "training.epochs", "must be a whole number from 0 to 4294967295, got a very large number"),
        ({"training": {"seed": 2**64}}, "training.seed", f"must be a whole number from 0 to {2**64 - 1}, got {2**64}"),
        ({"training": {"seed": 1e19}}, "training.seed", f"must be a whole number from 0 to {2**64 - 1}, got 1e+19"),
        ({"training": [1]}, "training", "must be an object, got a list"),
        ({"training": {"double_precision": "yes"}}, "training.double_precision", 'must be true or false, got the text "yes"'),
        ({"features": "a"}, "features", 'must be a list, got the text "a"'),
        ({"features": ["a", 1]}, "features[1]", "must be a text, got 1"),
        ({"features": [None]}, "features[0]", "must be a text, got null"),
        ({"name": "a\0b"}, "name", "must not contain the character NUL or halves of surrogate pairs"),
        ({"name": "\ud800"}, "name", "must not contain the character NUL or halves of surrogate pairs"),
        ({"\ud800": 1}, "?", "is not a field here; there are name, dataset, task"),
        ({"model": {"params": {"a": {"b": [1, "\udfff"]}}}}, "model.params.a.b[1]", "must not contain"),
        ({"model": {"params": {"a": 2**63 - 1}}}, "model.params.a", "is too large a whole number to be kept exactly"),
    ],
)
def test_what_is_wrong_is_said_in_words(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse(CreateJob, JOB | change)
    [violation] = raised.value.errors
    assert violation.field == field
    assert violation.message.startswith(words)


def test_enums_by_name() -> None:
    assert parse(CreateJob, {"task": "TASK_REGRESSION"}).task == job_pb2.TASK_REGRESSION
    with pytest.raises(Invalid) as raised:
        parse(CreateJob, {"task": "regresion"})
    [violation] = raised.value.errors
    assert violation.suggestions == ("regression",)
    assert violation.message == (
        'must be one of regression, classification, image_classification, text_classification, text_generation; got the text "regresion"'
    )


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(Invalid) as raised:
        parse(CreateTransform, {"steps": [{"cast": {"column": 1}}, {"fillter": {}}, {"dedupe": {}, "filter": {}}], "version": "x"})
    assert [each.field for each in raised.value.errors] == ["steps[0].cast.column", "steps[1].fillter", "steps[2]", "version"]


def test_depth_is_bounded() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    with pytest.raises(Invalid, match="nested deeper than 64"):
        parse(CreateJob, {"model": {"params": {"a": value}}})


def test_null_is_absent_but_for_values() -> None:
    assert parse(CreateJob, {"training": None, "name": None, "features": None}) == CreateJob()
    assert parse(dataset_pb2.Impute, {"value": None}).value == struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b"1e999", b'"\\ud800"', b"\xff", b"[" * 5000, b'{"a":1,}'])
def test_text_that_is_not_json(raw: bytes) -> None:
    with pytest.raises(Invalid, match="not JSON"):
        loads(raw)


@pytest.mark.parametrize("text", ["2026-02-30T00:00:00Z", "now", "2026-01-01", "9999-99-99T00:00:00Z", "0000-01-01T00:00:00Z", 5])
def test_times_that_are_none(text: Any) -> None:
    with pytest.raises(Invalid, match="must be a time such as"):
        parse(workspace_pb2.Workspace, {"create_time": text})


def test_texts_of_a_query() -> None:
    fields = data_service_pb2.PreviewDatasetVersionRequest.DESCRIPTOR.fields_by_name
    assert from_text(fields["rows"], ["5"]) == 5
    assert from_text(fields["rows"], ["x"]) == "x"
    assert from_text(fields["split"], ["5"]) == "5"


# Any message of our contracts comes back as it went out.

TYPES: list[type[Message]] = [
    CreateJob,
    CreateTransform,
    job_pb2.TrainingJob,
    model_pb2.ModelVersion,
    dataset_pb2.DatasetVersion,
    dataset_pb2.Profile,
]
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages_of(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([value.name.lower() for value in field.enum_type.values])
    return _NUMBERS.get(field.cpp_type, _TEXT)


def messages_of(descriptor: Descriptor) -> st.SearchStrategy[Any]:
    """JSON of any message of the type."""
    if descriptor.full_name == "google.protobuf.Struct":
        return st.dictionaries(_TEXT, _PLAIN, max_size=3)
    if descriptor.full_name == "google.protobuf.Value":
        return _PLAIN
    if descriptor.full_name == "google.protobuf.Timestamp":
        return st.builds(
            lambda seconds, nanos: timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos).ToJsonString(),
            st.integers(-62135596800, 253402300799),
            st.integers(0, 999_999_999),
        )
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            optional[field.name] = st.dictionaries(_TEXT, values_of(field.message_type.fields_by_name["value"]), max_size=2)
        elif field.is_repeated:
            optional[field.name] = st.lists(values_of(field), max_size=2)
        elif field.containing_oneof is None or field.containing_oneof.name.startswith("_"):
            optional[field.name] = values_of(field)
    plain = st.fixed_dictionaries({}, optional=optional)
    choices = [field for oneof in descriptor.oneofs if not oneof.name.startswith("_") for field in oneof.fields]
    if not choices:
        return plain
    return st.one_of(*(st.builds(lambda v, name=field.name: {name: v}, values_of(field)) for field in choices))


@pytest.mark.parametrize("message_type", TYPES)
def test_out_and_in_again_is_the_same(message_type: type[Message]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(messages_of(cast(Descriptor, message_type.DESCRIPTOR)))
    def run(value: Any) -> None:
        message = parse(message_type, value)
        assert parse(message_type, loads(orjson.dumps(dump(message)))) == message

    run()


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(JOB)) | st.text(), inner, max_size=4),
    )
)
def test_whatever_comes_in_nothing_but_invalid_comes_out(value: Any) -> None:
    try:
        parse(CreateJob, value)
    except Invalid as error:
        orjson.dumps([[each.field, each.message, each.suggestions] for each in error.errors])
