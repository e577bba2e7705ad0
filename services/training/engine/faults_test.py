import pytest
import torch

from libs.errors import Invalid
from services.training.engine.faults import describe


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(error):
    described = describe(error)
    assert described["code"] == "out_of_memory"
    assert "lower batch_size" in described["detail"]


def test_a_real_allocation_that_cannot_be_met():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert describe(caught.value)["code"] == "out_of_memory"


def test_what_the_user_did_keeps_its_code():
    assert describe(Invalid("no", code="invalid_data")) == {"code": "invalid_data", "detail": "no", "errors": []}


def test_a_mistake_of_ours_is_a_crash():
    assert describe(RuntimeError("shapes do not match")) is None
