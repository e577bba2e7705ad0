"""What counts as another answer."""

import pytest

from services.gateway.inference.shadow import differs


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
