"""Defaults and what no node could hold."""

import pytest

from libs.errors import Invalid
from services.deployment.domain.reference import parse_reference
from services.deployment.domain.resources import MIB, Needs, Room, complete, why_never

LAPTOP = Room(cpu_millis=2000, memory_bytes=8192 * MIB, devices=())
SERVER = Room(cpu_millis=64000, memory_bytes=8192 * MIB, devices=("gpu", "gpu"))


def test_a_replica_asks_for_a_tenth_of_a_core_and_memory_for_its_runtime() -> None:
    assert complete(Needs(), onnx=True, weights_bytes=0) == Needs("cpu", 1, 256 * MIB, 100)
    assert complete(Needs(), onnx=False, weights_bytes=10 * MIB) == Needs("cpu", 1, 1556 * MIB, 100)
    assert complete(Needs(count=2), onnx=True, weights_bytes=0).cpu_millis == 2000
    assert complete(Needs("gpu"), onnx=True, weights_bytes=0) == Needs("gpu", 1, 1536 * MIB, 1000)
    asked = Needs("cpu", 1, 512 * MIB, 250)
    assert complete(asked, onnx=True, weights_bytes=MIB) == asked


def test_what_no_node_could_hold_is_said_in_words() -> None:
    assert why_never(Needs("cpu", 1, MIB, 100), [LAPTOP]) == ""
    assert why_never(Needs("gpu", 4, MIB, 100), []) == ""
    assert why_never(Needs("gpu", 4, MIB, 100), [LAPTOP, SERVER]) == "no node has 4 gpu; the most that one has is 2"
    assert "the largest have 2 cores, 8192 MiB" in why_never(Needs("cpu", 1, 16384 * MIB, 100), [LAPTOP])


def test_references() -> None:
    assert parse_reference("wdbc") == ("wdbc", 0)
    assert parse_reference("wdbc@12") == ("wdbc", 12)
    for wrong in ("", "Wdbc", "wdbc@", "wdbc@0", "wdbc@-1", "a@b@c", "wdbc@99999999999"):
        with pytest.raises(Invalid, match="name@number"):
            parse_reference(wrong)
