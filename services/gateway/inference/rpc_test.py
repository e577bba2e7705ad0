"""The inference protocol over gRPC, spoken by tritonclient as it comes: the path of HTTP's predictions, and what it refuses."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from lepton.deployment.v1 import deployment_service_pb2
from libs.errors import Invalid, NotFound, Transient
from libs.inference import RESPONSES, SERVICE
from services.gateway.conftest import World
from services.gateway.inference.predictions_test import told
from services.gateway.inference.rpc import RpcServer
from services.gateway.settings import GatewaySettings, Limits

KEY = {"authorization": "Bearer owner-key"}


def tensors(rows: int = 2, wide: int = 1) -> list[InferInput]:
    made = []
    for name, datatype, array in [
        ("half", "FP16", np.full((rows, wide), 0.5, np.float16)),
        ("words", "BYTES", np.array([["ÿ\0"] * wide] * rows, object)),
    ]:
        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def typed(name: str = "wdbc", rows: int = 2) -> bytes:
    """Contents instead of raw bytes, by tritonclient's own types."""
    request = service_pb2.ModelInferRequest(model_name=name)
    request.inputs.add(name="a", datatype="FP32", shape=[rows]).contents.fp32_contents.extend([0.5] * rows)
    return bytes(request.SerializeToString())


class Caller:
    """A client that puts any bytes on the wire."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, [("grpc.max_send_message_length", -1)])

    def __call__(
        self, body: bytes, method: str = "ModelInfer", metadata: dict[str, str] | None = None, timeout: float | None = None
    ) -> Any:
        key = KEY if metadata is None else metadata
        return self.channel.unary_unary(f"/{SERVICE}/{method}")(body, metadata=tuple(key.items()), timeout=timeout)


@pytest.fixture
async def client(world: World) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(world.gateway.grpc_address) as client:
        yield client


@pytest.fixture
async def call(world: World) -> AsyncIterator[Caller]:
    caller = Caller(world.gateway.grpc_address)
    async with caller.channel:
        yield caller


async def refused(asked: Any) -> tuple[str, str]:
    """A refusal's status and words."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asked
    return error.value.code().name, str(error.value.details())


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_tensors_are_answered_and_recorded(world: World, client: InferenceServerClient) -> None:
    replica = await world.add_replica()
    answer = await client.infer("wdbc", tensors(), headers=KEY)
    assert answer.as_numpy("half").tolist() == [[0.5], [0.5]]
    assert answer.as_numpy("words").tolist() == [["ÿ\0".encode()], ["ÿ\0".encode()]]
    assert await told(world) == ["reserve acme 1..10", "answer 2", "record 2"]
    [request] = world.behind.deployment.batches.values()
    assert [(r.workspace, r.endpoint, r.requests, r.rows) for r in request.records] == [("acme", "wdbc", 1, 2)]
    assert "authorization" not in replica.seen[0][1]
    await until(lambda: sum(report.requests for report in world.behind.deployment.reports) == 1)


async def test_bytes_pass_as_they_are_and_the_trace_goes_on(world: World, call: Caller) -> None:
    replica, body = await world.add_replica(), typed() + b"\xfa\x06\x03new"
    asked = call(body)
    answer = RESPONSES["ModelInfer"].FromString(await asked)
    assert list(answer.outputs[0].contents.fp32_contents) == [0.5, 0.5]
    path, metadata, sent = replica.seen[0]
    assert (path, sent) == (f"/{SERVICE}/ModelInfer", body)
    trailers = dict(await asked.trailing_metadata())
    assert metadata["traceparent"].split("-")[1] == trailers["x-lepton-trace-id"]
    assert trailers["ratelimit"].startswith('"inference"')


async def test_messages_may_be_larger_than_grpc_has_it(world: World, client: InferenceServerClient) -> None:
    await world.add_replica()
    answer = await client.infer("wdbc", tensors(wide=1 << 20), headers=KEY)
    assert answer.as_numpy("words").shape == (2, 1 << 20)


async def test_server_and_model_say_what_they_are(world: World, client: InferenceServerClient) -> None:
    await world.add_replica()
    assert await client.is_server_live(headers=KEY)
    assert await client.is_server_ready(headers=KEY)
    assert list((await client.get_server_metadata(headers=KEY)).extensions) == ["binary_tensor_data"]
    assert (await client.get_model_metadata("wdbc", headers=KEY)).platform == "lepton"
    assert await client.is_model_ready("wdbc", headers=KEY)
    world.behind.deployment.replicas.clear()
    started = time.monotonic()
    assert not await client.is_model_ready("wdbc", headers=KEY)
    assert time.monotonic() - started < 5
    assert world.behind.deployment.batches == {}


async def test_without_a_key_that_works_nothing_is_said(world: World, call: Caller, client: InferenceServerClient) -> None:
    replica = await world.add_replica()
    for metadata in ({}, {"authorization": "Bearer nobody"}, {"authorization": "Basic x"}, {**KEY, "x-api-key": "viewer-key"}):
        for method in ("ServerLive", "ModelInfer"):
            code, words = await refused(call(typed(), method, metadata))
            assert (code, "API key" in words or "Bearer" in words) == ("UNAUTHENTICATED", True)
    assert replica.seen == []
    assert await client.infer("wdbc", tensors(), headers={"x-api-key": "owner-key"})


async def test_another_workspace_has_no_such_endpoint(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    for method in ("ModelInfer", "ModelReady", "ModelMetadata"):
        code, _ = await refused(call(typed(), method, {"authorization": "Bearer buyer-key"}))
        assert code == "NOT_FOUND"
        code, words = await refused(call(typed("other"), method))
        assert (code, "other" in words) == ("NOT_FOUND", True)
    assert replica.seen == []


async def test_garbage_in_place_of_a_message(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    for body, words in [
        (b"", "name a model"),
        (b"\xff" * 100, "no message"),
        (b"\x0a\x7fwdbc", "no message"),
        (b"\x0a\x02\xff\xfe", "no message"),
        (b"\x0a\x80\x02" + b"x" * 256, "name a model"),
        (b"\x08\x01", "name a model"),
    ]:
        for method in ("ModelInfer", "ModelReady"):
            code, said = await refused(call(body, method))
            assert (code, words in said) == ("INVALID_ARGUMENT", True), (body, said)
    code, _ = await refused(call(b"", "RepositoryIndex"))
    assert code == "UNIMPLEMENTED"
    assert replica.seen == []
    assert await call(typed())


async def test_a_replica_s_refusal_comes_in_its_words(world: World, client: InferenceServerClient) -> None:
    replica = await world.add_replica()
    replica.refusal = Invalid("half: it is wrong", code="invalid_record")
    with pytest.raises(InferenceServerException, match="half: it is wrong") as error:
        await client.infer("wdbc", tensors(), headers=KEY)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    replica.refusal = NotFound("there is no model wdbc 9")
    with pytest.raises(InferenceServerException, match="no model wdbc 9"):
        await client.is_model_ready("wdbc", "9", headers=KEY)
    assert len(replica.seen) == 2
    assert world.behind.deployment.batches == {}


async def test_a_replica_that_has_too_much_to_do_says_when_to_come_back(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    replica.refusal = Transient("400 rows wait already", code="rate_limited", meta={"retry_after": 7})
    asked = call(typed())
    assert await refused(asked) == ("RESOURCE_EXHAUSTED", "400 rows wait already")
    assert dict(await asked.trailing_metadata())["retry-after"] == "7"


async def test_no_answer_without_quota(world: World, call: Caller) -> None:
    await world.add_replica()
    world.behind.accounts.left = 3
    assert await call(typed())
    code, words = await refused(call(typed()))
    assert (code, "pro has more" in words) == ("RESOURCE_EXHAUSTED", True)
    assert (await told(world, 2))[-1] == "record 2"


async def test_a_replica_that_is_gone_or_leaves_is_passed_over(world: World, call: Caller) -> None:
    dead, leaving = await world.add_replica("dead"), await world.add_replica("leaving")
    await dead.stop()
    leaving.refusal = Transient("this replica is leaving")
    await world.add_replica("alive")
    for _ in range(6):
        assert await call(typed())


async def test_a_call_is_held_while_the_only_replica_is_replaced(world: World, call: Caller) -> None:
    dead = await world.add_replica("dead")
    await dead.stop()
    asking = asyncio.create_task(_answer(call(typed())))
    await asyncio.sleep(0.5)
    world.behind.deployment.replicas.clear()
    await world.add_replica("alive")
    assert await asking


async def test_a_replica_that_dies_with_a_call_in_hand(world: World, call: Caller) -> None:
    dying = await world.add_replica("dying")
    dying.pause = 60
    asking = asyncio.create_task(_answer(call(typed())))
    await until(lambda: dying.seen)
    await world.add_replica("alive")
    await dying.stop()
    assert await asking


async def test_a_caller_that_leaves_takes_its_call_back(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    replica.pause = 60
    asked = call(typed())
    await until(lambda: replica.seen)
    asked.cancel()
    await until(lambda: replica.left)
    replica.pause = 0
    assert await call(typed())
    assert await told(world) == ["reserve acme 1..10", "answer 2", "record 2"]


async def test_a_caller_s_deadline_is_the_replica_s(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    replica.pause = 60
    code, _ = await refused(call(typed(), timeout=0.5))
    assert code == "DEADLINE_EXCEEDED"
    assert 0 < int(replica.seen[0][1]["x-lepton-deadline-ms"]) <= 500
    await until(lambda: replica.left)


async def test_what_is_in_hand_is_answered_at_the_end(world: World, call: Caller) -> None:
    replica = await world.add_replica()
    replica.pause = 0.5
    asking = asyncio.create_task(_answer(call(typed())))
    await until(lambda: replica.seen)
    await world.gateway.stop()
    assert await asking
    assert world.behind.log[-2:] == ["record 2", "release acme"]


async def test_a_shadow_gets_copies_of_what_predicts(world: World, call: Caller) -> None:
    await world.add_replica()
    shadow = await world.add_replica("shadow")
    world.behind.deployment.replicas[1].revision = 2
    world.behind.deployment.shares.append(deployment_service_pb2.RevisionShare(revision=2, shadow=True))
    await call(typed(), "ModelMetadata")
    await call(typed())
    await until(lambda: sum(report.shadow_compared for report in world.behind.deployment.reports) == 1)
    assert [path.rpartition("/")[2] for path, _, _ in shadow.seen] == ["ModelInfer"]
    assert sum(report.shadow_differing for report in world.behind.deployment.reports) == 0
    assert (await told(world, 2))[-1] == "record 2"


async def test_what_is_compressed_is_refused(world: World, client: InferenceServerClient) -> None:
    replica = await world.add_replica()
    with pytest.raises(InferenceServerException, match="'gzip' is disabled") as error:
        await client.infer("wdbc", tensors(), headers=KEY, compression_algorithm="gzip")
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"
    assert replica.seen == []


async def test_a_port_that_is_taken(world: World) -> None:
    _, _, port = world.gateway.grpc_address.rpartition(":")
    other = RpcServer(_nothing, GatewaySettings(grpc_port=int(port)), asyncio.Event())
    with pytest.raises(OSError, match="LEPTON_GATEWAY_GRPC_PORT"):
        await other.start()
    await other.stop()


async def _nothing(*_: Any) -> None:
    """An application that nobody asks."""


async def _answer(asked: Any) -> bytes:
    return bytes(await asked)


class TestBounds:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(predict_bytes=1000, inference_rate="3/minute", body_seconds=0.3)

    async def test_a_message_that_is_too_large(self, world: World, call: Caller) -> None:
        replica = await world.add_replica()
        code, words = await refused(call(b" " * (1001)))
        assert (code, "larger" in words) == ("RESOURCE_EXHAUSTED", True)
        assert replica.seen == []
        assert await call(typed())

    async def test_calls_that_are_too_many(self, world: World, call: Caller) -> None:
        await world.add_replica()
        for _ in range(3):
            await call(typed())
        asked = call(typed())
        code, words = await refused(asked)
        assert (code, "more than 3 requests" in words) == ("RESOURCE_EXHAUSTED", True)
        assert int(dict(await asked.trailing_metadata())["retry-after"]) > 0
        assert await call(b"", "ServerLive")

    async def test_a_message_that_does_not_come(self, world: World, call: Caller) -> None:
        waiting = call.channel.stream_unary(f"/{SERVICE}/ModelInfer")(metadata=tuple(KEY.items()))
        code, words = await refused(waiting)
        assert (code, "did not arrive" in words) == ("INVALID_ARGUMENT", True)

    async def test_heads_that_are_too_large(self, world: World, call: Caller) -> None:
        await world.add_replica()
        code, _ = await refused(call(typed(), metadata={**KEY, "x-large": "x" * (40 << 10)}))
        assert code == "RESOURCE_EXHAUSTED"
        assert await call(typed())
