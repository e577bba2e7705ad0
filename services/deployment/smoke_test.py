"""Records that signatures describe are records that models take, pictures and times included."""

import json
from pathlib import Path
from typing import Any

import pytest

from libs.modelkit.records import RecordReader
from libs.modelkit.signature import describe
from services.deployment.smoke import record_of


@pytest.mark.parametrize(
    "inputs",
    [
        [{"name": "a", "type": "double", "optional": False}, {"name": "b", "type": "integer", "optional": True}],
        [{"name": "yes", "type": "boolean", "optional": False}, {"name": "at", "type": "timestamp", "optional": False}],
        [{"name": "colour", "type": "string", "optional": False, "values": ["red", "blue"]}],
        [{"name": "picture", "type": "image", "optional": False, "shape": (8, 6, 3)}],
    ],
)
def test_a_model_takes_the_record_of_its_signature(inputs: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"signature": describe(inputs, None).as_json()}))
    record = record_of(tmp_path)
    assert record is not None
    raw = RecordReader(inputs).read([record])
    assert raw.rows == 1


def test_what_does_not_say_what_it_takes_is_not_asked(tmp_path: Path) -> None:
    assert record_of(tmp_path) is None
    for content in ("no json", "{}", "[]", '{"signature": {"inputs": [{"name": "a", "type": "sound"}]}}'):
        (tmp_path / "model.json").write_text(content)
        assert record_of(tmp_path) is None
