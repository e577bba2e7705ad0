"""What counts as another answer."""

import struct
from typing import Any

import pytest

from libs.inference import RESPONSES
from services.gateway.inference.shadow import differs, tensors_differ


@pytest.mark.parametrize(
    ("one", "two", "other"),
    [
        (b'{"predictions":[{"label":"a","p":0.5}]}', b'{"predictions":[{"label":"a","p":0.501}]}', False),
        (b'{"predictions":[{"label":"a","p":0.5}]}', b'{"predictions":[{"label":"b","p":0.5}]}', True),
        (b'{"predictions":[1.0]}', b'{"predictions":[1.2]}', True),
        (b'{"predictions":[1]}', b'{"predictions":[1.0]}', False),
        (b'{"predictions":[true]}', b'{"predictions":[1]}', True),
        (b'{"predictions":[1,2]}', b'{"predictions":[1]}', True),
        (b'{"model_version":"1","outputs":[]}', b'{"model_version":"2","outputs":[]}', False),
        (b"\x00\x01", b"\x00\x01", False),
        (b"\x00\x01", b"\x00\x02", True),
    ],
)
def test_answers_are_compared_by_what_they_say(one: bytes, two: bytes, other: bool) -> None:
    assert differs(one, two) is other


def answer(datatype: str, *, raw: bytes | None = None, name: str = "p", version: str = "1", **contents: Any) -> bytes:
    message = RESPONSES["ModelInfer"](model_name="m", model_version=version)
    message.outputs.add(name=name, datatype=datatype, shape=[1], contents=contents)
    if raw is not None:
        message.raw_output_contents.append(raw)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    ("one", "two", "other"),
    [
        (answer("FP16", raw=struct.pack("<e", 0.5)), answer("FP16", raw=struct.pack("<e", 0.501), version="2"), False),
        (answer("FP32", raw=struct.pack("<f", 0.5)), answer("FP32", raw=struct.pack("<f", 0.6)), True),
        (answer("FP64", raw=struct.pack("<d", 0.5)), answer("FP64", raw=struct.pack("<d", 0.5), name="q"), True),
        (answer("INT64", raw=struct.pack("<q", 1)), answer("INT64", raw=struct.pack("<q", 2)), True),
        (answer("BYTES", raw=b"\1\0\0\0a"), answer("BYTES", raw=b"\1\0\0\0a"), False),
        (answer("FP32", fp32_contents=[0.5]), answer("FP32", fp32_contents=[0.501]), False),
        (answer("FP32", fp32_contents=[0.5]), answer("FP32", fp32_contents=[0.5, 0.5]), True),
        (answer("BYTES", bytes_contents=[b"a"]), answer("BYTES", bytes_contents=[b"b"]), True),
        (answer("FP32", raw=b"\0"), answer("FP32", raw=b"\1"), True),
        (b"\xff", b"\xff", False),
    ],
)
def test_tensors_are_compared_by_what_they_say(one: bytes, two: bytes, other: bool) -> None:
    assert tensors_differ(one, two) is other
