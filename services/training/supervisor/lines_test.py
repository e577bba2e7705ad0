"""Lines come whole and once, however they are written."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.training.supervisor.lines import LineReader


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xff", b"bcd", b"\x0b\x1c"])).map(b"".join), sizes=st.lists(st.integers(1, 7)))
def test_any_bytes_in_any_pieces(tmp_path: Path, data: bytes, sizes: list[int]) -> None:
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    reader = LineReader(path, 1000)
    lines = reader.read()
    with path.open("ab", buffering=0) as file:
        start = 0
        for size in sizes:
            file.write(data[start : start + size])
            start += size
            lines += reader.read(3)
        file.write(data[start:])
    lines += reader.rest()
    expected = data.split(b"\n")
    assert lines == [line.rstrip(b"\r") for line in expected[:-1]] + ([expected[-1]] if expected[-1] else [])
    assert reader.read() == reader.rest() == []


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_line_that_is_too_long_is_left_out(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before\n" + b"x" * 95 + b"\nafter\n" + b"y" * 95)
    reader = LineReader(path, 20)
    lines = []
    for _ in range(300):
        lines += reader.read(piece)
    assert lines + reader.rest() == [b"before", b"after"]
    assert reader.skipped == 2
