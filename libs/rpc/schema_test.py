"""Schemas say what the codec and the rules do, with the proto's own words."""

from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor

from lepton.data.v1 import data_service_pb2
from lepton.training.v1 import job_pb2, training_service_pb2
from libs.rpc.schema import Schemas, read_comments


def descriptor(message: Any) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    schemas = Schemas(read_comments())
    schemas.sent(descriptor(training_service_pb2.CreateTrainingJobRequest))
    schemas.sent(descriptor(data_service_pb2.CreateTransformRequest))
    schemas.received(descriptor(job_pb2.TrainingJob))
    return schemas.components()


def test_bounds_and_words(components: dict[str, Any]) -> None:
    training = components["TrainingSpec"]["properties"]
    assert training["learning_rate"] == {
        "type": "number",
        "format": "double",
        "exclusiveMinimum": 0,
        "maximum": 10,
        "description": "Default 0.001 (0.05 for sgd, 1 for lbfgs).",
    }
    assert training["epochs"]["minimum"] == 0
    assert training["epochs"]["maximum"] == 100000
    assert components["CreateTransformRequest"]["properties"]["steps"]["maxItems"] == 100
    assert components["CreateTransformRequest"]["properties"]["steps"]["minItems"] == 1


def test_enums_are_short_names(components: dict[str, Any]) -> None:
    task = components["CreateTrainingJobRequest"]["properties"]["task"]
    assert task["enum"] == ["regression", "classification", "image_classification", "text_classification", "text_generation"]
    assert components["TrainingSpec"]["properties"]["optimizer"]["enum"][0] == "unspecified"


def test_what_is_sent_is_closed_and_what_is_received_is_complete(components: dict[str, Any]) -> None:
    request = components["CreateTrainingJobRequest"]
    assert request["required"] == ["dataset", "task", "output_model", "model"]
    assert request["additionalProperties"] is False
    job = components["TrainingJob"]
    assert "additionalProperties" not in job
    assert "id" in job["required"]
    assert "error" not in job["required"]
    assert components["ModelSpec"]["additionalProperties"] is False


def test_one_of(components: dict[str, Any]) -> None:
    [choice] = components["TransformStep"]["allOf"]
    assert {"required": ["split"]} in choice["oneOf"]


def test_fields_of_the_path_are_no_part_of_the_body() -> None:
    body = Schemas({}).sent(descriptor(data_service_pb2.CreateTransformRequest), without={"name"})
    assert list(body["properties"]) == ["version", "output", "steps"]


def test_comments_are_there() -> None:
    comments = read_comments()
    assert comments["lepton.data.v1.DataService.ListDatasetVersions"] == "Newest first."
    assert comments["lepton.training.v1.Task.TASK_REGRESSION"] == "A number from a table's row."
