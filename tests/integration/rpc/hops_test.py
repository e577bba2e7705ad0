"""Time over three hops, and calls that are tried again, or not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lepton.compute.v1 import allocation_pb2
from lepton.compute.v1.compute_service_pb2_grpc import ComputeServiceServicer, ComputeServiceStub
from libs.errors import Transient
from libs.rpc import Call, Client, Identity, Signer, acting, acting_for, current_call, generate_key
from tests.integration.rpc.scene import create, get, server_of

PRIVATE, PUBLIC = generate_key()


class Hop(ComputeServiceServicer):
    """Works for 0.1 s, then asks the next one."""

    def __init__(self, name: str, following: Client | None) -> None:
        self.name, self.following = name, following
        self.remaining: list[float] = []
        self.callers: list[Identity] = []
        self.cancelled = 0
        self.seconds = 0.1

    async def GetAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        return await self._pass_on(request, "GetAllocation")

    async def CreateAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        return await self._pass_on(request, "CreateAllocation")

    async def _pass_on(self, request: Any, method: str) -> allocation_pb2.Allocation:
        remaining = current_call().remaining()
        assert remaining is not None
        self.remaining.append(remaining)
        self.callers.append(current_call().identity)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.following is None:
            return allocation_pb2.Allocation(id="a", workspace=current_call().identity.workspace)
        answer: allocation_pb2.Allocation = await getattr(self.following, method)(request)
        return answer


@dataclass
class Chain:
    """gateway → first → second → third."""

    gateway: Client
    hops: list[Hop]

    @property
    def remaining(self) -> list[list[float]]:
        return [hop.remaining for hop in self.hops]


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    async with AsyncExitStack() as stack:
        hops: list[Hop] = []
        following = None
        for name, caller in (("third", "second"), ("second", "first"), ("first", "gateway")):
            hops.insert(0, Hop(name, following))
            server = server_of(hops[0], f"unix:{tmp_path}/{name}", PUBLIC)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            following = Client(ComputeServiceStub, server.address, Signer(PRIVATE, caller))
            stack.push_async_callback(following.close)
        assert following
        yield Chain(following, hops)


async def test_every_hop_has_less_time_and_only_the_first_hears_of_the_member(chain: Chain) -> None:
    with acting(Call(Identity("", "acme", "ada@acme.test", 4, "key-1"))):
        answer = await chain.gateway.GetAllocation(get(), timeout=3)
    assert answer.workspace == "acme"
    (first,), (second,), (third,) = chain.remaining
    # Each hop works 0.1 s and keeps 0.05 s back for telling its caller.
    # gRPC rounds a deadline up on its way.
    assert 2.5 < first <= 3.1
    assert second <= first - 0.14
    assert third <= second - 0.14
    assert [hop.callers for hop in chain.hops] == [
        [Identity("gateway", "acme", "ada@acme.test", 4, "key-1")],
        [Identity("first", "acme", role=1)],
        [Identity("second", "acme", role=1)],
    ]


async def test_who_is_last_is_not_asked_when_time_is_over(chain: Chain) -> None:
    chain.hops[1].seconds = 5
    started = time.monotonic()
    with acting_for("acme"), pytest.raises(Transient) as late:
        await chain.gateway.CreateAllocation(create("a"), timeout=0.6)
    assert late.value.code == "deadline_exceeded"
    assert time.monotonic() - started < 1.5
    await asyncio.sleep(0.2)
    # Nobody goes on with what nobody waits for.
    assert chain.hops[1].cancelled == 1
    assert [len(each) for each in chain.remaining] == [1, 1, 0]


async def test_a_caller_that_leaves_ends_the_work_of_all_hops(chain: Chain) -> None:
    chain.hops[2].seconds = 5
    with acting_for("acme"), pytest.raises(TimeoutError):
        await asyncio.wait_for(chain.gateway.CreateAllocation(create("a"), timeout=10), 0.5)
    await asyncio.sleep(0.3)
    assert chain.hops[2].cancelled == 1


class Failing(ComputeServiceServicer):
    """Never there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def GetAllocation(self, request: Any, context: Any) -> Any:
        self.times.append(time.monotonic())
        raise Transient("not now")

    async def CreateAllocation(self, request: Any, context: Any) -> Any:
        return await self.GetAllocation(request, context)


@pytest.fixture
async def failing(tmp_path: Path) -> AsyncIterator[tuple[Failing, Client]]:
    servicer = Failing()
    server = server_of(servicer, f"unix:{tmp_path}/s", PUBLIC)
    await server.start()
    client = Client(ComputeServiceStub, server.address, Signer(PRIVATE, "gateway"))
    yield servicer, client
    await client.close()
    await server.stop(0)


async def test_a_create_is_never_tried_again_by_the_channel(failing: tuple[Failing, Client]) -> None:
    servicer, client = failing
    with acting_for("acme"):
        for _ in range(5):
            with pytest.raises(Transient, match="not now"):
                await client.CreateAllocation(create("a"), idempotency_key="k")
    assert len(servicer.times) == 5


async def test_reads_are_tried_again_within_their_time_only(failing: tuple[Failing, Client]) -> None:
    servicer, client = failing
    started = time.monotonic()
    with acting_for("acme"), pytest.raises(Transient):
        await client.GetAllocation(get(), timeout=0.04)
    assert time.monotonic() - started < 0.5
    ended = started + 0.04
    await asyncio.sleep(1)
    assert servicer.times
    assert all(moment <= ended + 0.05 for moment in servicer.times)


async def test_a_service_that_is_down_is_not_asked_four_times_as_often(failing: tuple[Failing, Client]) -> None:
    servicer, client = failing

    async def read() -> None:
        with pytest.raises(Transient):
            await client.GetAllocation(get(), timeout=5)

    with acting_for("acme"):
        await asyncio.gather(*(read() for _ in range(100)))
        servicer.times.clear()
        await asyncio.gather(*(read() for _ in range(100)))
    assert len(servicer.times) == 100
