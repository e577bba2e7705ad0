"""A real server on a socket and a real client: who is let in, what is said, how time and traces travel."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from lepton.common.v1 import options_pb2
from lepton.compute.v1 import allocation_pb2, compute_service_pb2
from lepton.compute.v1.compute_service_pb2_grpc import (
    ComputeServiceServicer,
    ComputeServiceStub,
    add_ComputeServiceServicer_to_server,
)
from lepton.training.v1 import job_pb2, training_service_pb2
from lepton.training.v1.training_service_pb2_grpc import (
    TrainingServiceServicer,
    TrainingServiceStub,
    add_TrainingServiceServicer_to_server,
)
from libs.errors import AppError, Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Transient, Unauthenticated, Violation
from libs.rpc import Call, Client, Identity, Server, Signer, Verifier, acting, acting_for, current_call, generate_key
from libs.telemetry import inject

PRIVATE, PUBLIC = generate_key()


class Compute(ComputeServiceServicer):
    """Says back what it was told, or raises what it was told to raise."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[Call] = []
        self.failures = 0

    async def GetAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        self.calls.append(current_call())
        if self.failures:
            self.failures -= 1
            raise Transient("not yet")
        if self.error:
            raise self.error
        if request.id == "slow":
            await asyncio.sleep(5)
        return allocation_pb2.Allocation(id=request.id, workspace=current_call().identity.workspace)

    async def UpdateNode(self, request: Any, context: Any) -> Any:
        self.calls.append(current_call())
        if self.error:
            raise self.error
        return compute_service_pb2.UpdateNodeRequest(name=request.name)

    async def ReleaseAllocation(self, request: Any, context: Any) -> allocation_pb2.Allocation:
        return allocation_pb2.Allocation(id=current_call().identity.service)


class Training(TrainingServiceServicer):
    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(3):
            yield training_service_pb2.WatchTrainingJobResponse(event_id=str(number), job=job_pb2.TrainingJob(id=request.id))
        if request.id == "broken":
            raise NotFound("gone")
        if request.id == "endless":
            await asyncio.sleep(60)


@pytest.fixture
def compute() -> Compute:
    return Compute()


@pytest.fixture
async def server(tmp_path: Path, compute: Compute) -> AsyncIterator[Server]:
    services = [(compute, add_ComputeServiceServicer_to_server), (Training(), add_TrainingServiceServicer_to_server)]
    server = Server(f"unix:{tmp_path}/s", services, verifier=Verifier(PUBLIC))
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    client = Client(ComputeServiceStub, server.address, Signer(PRIVATE, "gateway"))
    yield client
    await client.close()


@pytest.fixture
async def training(server: Server) -> AsyncIterator[Client]:
    client = Client(TrainingServiceStub, server.address, Signer(PRIVATE, "gateway"))
    yield client
    await client.close()


def get(name: str = "a") -> compute_service_pb2.GetAllocationRequest:
    return compute_service_pb2.GetAllocationRequest(id=name)


async def test_a_call_arrives_on_behalf_of_its_workspace(client: Client, compute: Compute) -> None:
    with acting_for("acme", "ann@acme.test", options_pb2.ROLE_VIEWER):
        answer = await client.GetAllocation(get())
    assert answer.workspace == "acme"
    [call] = compute.calls
    assert call.identity == Identity("gateway", "acme", "ann@acme.test", options_pb2.ROLE_VIEWER)
    assert call.method == "lepton.compute.v1.ComputeService/GetAllocation"
    # On its way gRPC rounds it up.
    assert 9 < (call.remaining() or 0) <= 10.2
    assert current_call() == Call()


async def test_who_is_refused(client: Client, server: Server) -> None:
    with pytest.raises(Unauthenticated):
        await client.GetAllocation(get())
    update = compute_service_pb2.UpdateNodeRequest(name="n", state=2)
    with acting_for("acme", role=options_pb2.ROLE_OWNER), pytest.raises(Forbidden, match="needs the role operator") as refused:
        await client.UpdateNode(update)
    assert refused.value.meta == {"role": "owner", "needed": "operator"}
    stranger = Client(ComputeServiceStub, server.address, Signer(generate_key()[0], "tester"))
    with acting_for("acme"), pytest.raises(Unauthenticated):
        await stranger.GetAllocation(get())
    await stranger.close()
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as bare:
            await ComputeServiceStub(channel).ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id="a"))
    assert bare.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_method_without_role_is_for_services(client: Client) -> None:
    answer = await client.ReleaseAllocation(compute_service_pb2.ReleaseAllocationRequest(id="a"))
    assert answer.id == "gateway"


async def test_a_request_is_checked_by_its_rules(client: Client, compute: Compute) -> None:
    with acting_for("acme"), pytest.raises(Invalid) as refused:
        await client.UpdateNode(compute_service_pb2.UpdateNodeRequest(name="n"))
    assert refused.value.errors == (Violation("state", "is required: one of ready, cordoned, lost", ("ready", "cordoned", "lost")),)
    assert compute.calls == []


@pytest.mark.parametrize(
    "error",
    [
        NotFound.of("dataset", "wbdc", ["wdbc"]),
        QuotaExceeded("used up", meta={"limit": 5, "used": 5, "plans": ["pro"], "ratio": 0.5}),
        Conflict("lost", code="stale"),
        Conflict("taken", code="name_taken"),
        Invalid("bad", errors=[Violation("a.b[2]", "no", ("x", "y"))], code="invalid_data"),
        Transient("full", code="storage_full"),
        AppError("unterwegs verloren: ä ö 漢", code="upstream_failed"),
    ],
)
async def test_errors_arrive_as_they_were_raised(client: Client, compute: Compute, error: AppError) -> None:
    compute.error = error
    with acting_for("acme"), pytest.raises(AppError) as raised:
        await client.UpdateNode(compute_service_pb2.UpdateNodeRequest(name="n", state=2))
    got = raised.value
    assert (got.code, got.detail, got.errors, got.meta) == (error.code, error.detail, error.errors, error.meta)
    assert type(got) is type(error) or type(error) is AppError


async def test_a_thousand_violations_fit_into_a_trailer(client: Client, compute: Compute) -> None:
    compute.error = Invalid.of([Violation(f"rows[{n}]", "w" * 200) for n in range(1000)])
    with acting_for("acme"), pytest.raises(Invalid, match="999 more") as raised:
        await client.GetAllocation(get())
    assert len(raised.value.errors) > 50


async def test_a_bug_is_logged_and_not_told(client: Client, compute: Compute) -> None:
    compute.error = RuntimeError("password 123")
    with structlog.testing.capture_logs() as logs, acting_for("acme"), pytest.raises(AppError) as raised:
        await client.GetAllocation(get())
    assert raised.value.code == "internal"
    assert "123" not in str(raised.value)
    assert [entry["event"] for entry in logs] == ["rpc_failed"]


async def test_time_runs_out(client: Client, compute: Compute) -> None:
    started = time.monotonic()
    with acting_for("acme"), pytest.raises(Transient) as raised:
        await client.GetAllocation(get("slow"), timeout=0.2)
    assert raised.value.code == "deadline_exceeded"
    call = Call(Identity("", "acme", role=1), deadline=time.monotonic() + 0.3)
    with acting(call), pytest.raises(Transient):
        await client.GetAllocation(get("slow"))
    assert time.monotonic() - started < 2
    with acting(Call(Identity("", "acme", role=1), deadline=time.monotonic())), pytest.raises(Transient, match="no time"):
        await client.GetAllocation(get())


async def test_reads_are_tried_again_and_changes_are_not(client: Client, compute: Compute) -> None:
    compute.failures = 2
    with acting_for("acme"):
        assert (await client.GetAllocation(get())).id == "a"
    assert len(compute.calls) == 3
    compute.error = Transient("not now")
    compute.calls.clear()
    with acting_for("acme"), pytest.raises(Transient):
        await client.UpdateNode(compute_service_pb2.UpdateNodeRequest(name="n", state=2))
    assert len(compute.calls) == 1


async def test_a_peer_that_is_away(tmp_path: Path) -> None:
    client = Client(ComputeServiceStub, f"unix:{tmp_path}/nobody", Signer(PRIVATE, "gateway"))
    with acting_for("acme"), pytest.raises(Transient, match="the compute service cannot be reached") as raised:
        await client.UpdateNode(compute_service_pb2.UpdateNodeRequest(name="n", state=2))
    assert raised.value.code == "unavailable"
    assert not await client.ready(0.2)
    await client.close()


async def test_streams_end_break_and_are_left(training: Client) -> None:
    async def read(name: str) -> list[str]:
        events = training.WatchTrainingJob(training_service_pb2.WatchTrainingJobRequest(id=name))
        return [event.event_id async for event in events]

    with acting_for("acme"):
        assert await read("fine") == ["0", "1", "2"]
        with pytest.raises(NotFound, match="gone"):
            await read("broken")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read("endless"), 0.3)


async def test_health_and_address(client: Client, compute: Compute) -> None:
    assert await client.ready()
    server = Server("127.0.0.1:0", [(compute, add_ComputeServiceServicer_to_server)], verifier=Verifier(PUBLIC))
    await server.start()
    assert not server.address.endswith(":0")
    with pytest.raises(OSError, match="cannot listen on"):
        await Server(server.address, [], verifier=Verifier(PUBLIC)).start()
    await server.stop(0)


async def test_the_idempotency_key_goes_along_on_request(client: Client, compute: Compute) -> None:
    with acting_for("acme"):
        await client.GetAllocation(get(), idempotency_key="k-1")
        await client.GetAllocation(get())
    assert [call.idempotency_key for call in compute.calls] == ["k-1", ""]


def test_background_work_goes_on_with_the_trace_that_is_named() -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    with acting_for("acme", **trace):
        assert current_call().identity.workspace == "acme"
        assert inject() == trace
        with acting_for("acme"):
            assert inject() == trace
    assert inject() == {}
    for broken in ("", "nonsense"):
        with acting_for("acme", traceparent=broken):
            assert inject() == {}
