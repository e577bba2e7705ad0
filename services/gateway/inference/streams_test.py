"""Streams of the inference protocol, spoken by tritonclient as it comes: texts piece by piece, and rows."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient, InferInput

from libs.errors import Invalid
from libs.inference import SERVICE
from services.gateway.conftest import World
from services.gateway.inference.rpc_test import KEY, tensors, typed, until
from services.gateway.inference.streams import Turn


def tensor(name: str, datatype: str, value: Any) -> InferInput:
    array = np.array(
        value if isinstance(value, list) else [value], {"BYTES": object, "INT32": np.int32, "FP32": np.float32, "BOOL": bool}[datatype]
    )
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def asked(text: str, *more: InferInput, **other: Any) -> dict[str, Any]:
    return {"model_name": "wdbc", "inputs": [tensor("text_input", "BYTES", text), *more], **other}


def recorded(world: World) -> tuple[int, ...]:
    """Requests, rows, tokens in and out."""
    records = [record for batch in world.behind.deployment.batches.values() for record in batch.records]
    return tuple(sum(getattr(each, name) for each in records) for name in ("requests", "rows", "tokens_in", "tokens_out"))


def message(final: bool = True, **inputs: str | bool) -> bytes:
    """By tritonclient's types; its asyncio client leaves out that the end shall be told."""
    request = service_pb2.ModelInferRequest(model_name="wdbc", id="a")
    request.parameters["triton_enable_empty_final_response"].bool_param = final
    for name, value in inputs.items():
        contents = request.inputs.add(name=name, datatype="BYTES" if isinstance(value, str) else "BOOL", shape=[1]).contents
        if isinstance(value, str):
            contents.bytes_contents.append(value.encode())
        else:
            contents.bool_contents.append(value)
    return bytes(request.SerializeToString())


async def talk(world: World, *requests: dict[str, Any], key: dict[str, str] | None = None) -> list[Any]:
    """What tritonclient is told: words of errors, and of texts."""

    async def each() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield request

    said: list[Any] = []
    async with InferenceServerClient(world.gateway.grpc_address) as client, asyncio.timeout(20):
        async for result, error in client.stream_infer(each(), headers=KEY if key is None else key):
            said.append(error.message() if error else _read(result))
    return said


def _read(result: Any) -> Any:
    response = result.get_response()
    text = result.as_numpy("text_output")
    return (response.id, text[0].decode() if text is not None else [output.name for output in response.outputs])


async def test_a_text_comes_piece_by_piece_and_its_tokens_are_recorded(world: World) -> None:
    replica = await world.add_replica()
    said = await talk(world, asked("good ÿ day to you", tensor("max_tokens", "INT32", 3), request_id="a"))
    assert said == [("a", "GOOD"), ("a", "Ÿ"), ("a", "DAY")]
    await until(lambda: recorded(world) == (1, 1, 5, 3))
    assert replica.seen[0][0] == "/v2/models/wdbc/generate_stream"


async def test_rows_and_texts_in_one_stream(world: World) -> None:
    await world.add_replica()
    said = await talk(
        world,
        asked("one two", request_id="a"),
        {"model_name": "wdbc", "inputs": tensors()},
        asked("whole text", tensor("stream", "BOOL", False), request_id="c"),
    )
    assert said == [("a", "ONE"), ("a", "TWO"), ("", ["half", "words"]), ("c", "WHOLE TEXT")]


async def test_the_end_of_each_answer_is_told_to_who_asks(world: World) -> None:
    await world.add_replica()
    requests = [message(text_input="one two"), message(text_input="whole", stream=False), typed()]
    async with grpc.aio.insecure_channel(world.gateway.grpc_address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(requests), metadata=tuple(KEY.items()))
        said = [service_pb2.ModelStreamInferResponse.FromString(each).infer_response async for each in call]
    ends = [each.parameters["triton_final_response"].bool_param if each.parameters else None for each in said]
    assert [len(each.outputs) for each in said] == [1, 1, 0, 1, 1]
    assert ends == [False, False, True, True, None]


async def test_a_request_that_is_wrong_ends_no_stream(world: World) -> None:
    await world.add_replica()
    said = await talk(
        world,
        asked("", request_id="a"),
        {**asked("text"), "model_name": "nowhere"},
        asked("text", tensor("top_k", "INT32", 3)),
        {"model_name": "wdbc", "inputs": [tensor("text_input", "BYTES", ["two", "texts"])]},
        asked("still here", parameters={"max_tokens": 1}),
    )
    for words, known in zip(said, ("text_input", "nowhere", "top_k: a text takes text_input, max_tokens", "2 elements"), strict=False):
        assert known in words
    assert said[4:] == [("", "STILL")]


async def test_a_replica_that_dies_in_the_middle_is_told_of(world: World) -> None:
    replica = await world.add_replica()
    replica.breaks_after = 2
    said = await talk(world, asked("one two three"))
    assert said[:2] == [("", "ONE"), ("", "TWO")]
    assert "broke off" in said[2]
    assert len(said) == 3


async def test_nobody_unknown_streams(world: World) -> None:
    replica = await world.add_replica()
    for key in ({}, {"authorization": "Bearer nobody"}):
        with pytest.raises(grpc.aio.AioRpcError, match="API key") as error:
            await talk(world, asked("one"), key=key)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert replica.seen == []


async def test_who_goes_away_takes_the_text_back(world: World) -> None:
    replica = await world.add_replica()
    replica.pause = 0.05
    async with grpc.aio.insecure_channel(world.gateway.grpc_address) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
            iter([message(text_input="word " * 1000)]), metadata=tuple(KEY.items())
        )
        assert await call.read()
        call.cancel()
    await asyncio.sleep(0.5)
    streamed = replica.streamed
    await asyncio.sleep(0.5)
    assert replica.streamed <= streamed + 1 < 100
    await until(lambda: recorded(world)[3] > 0)


def test_what_is_no_text_is_refused_in_words() -> None:
    def turn(raw: bytes, name: str = "text_input", datatype: str = "BYTES") -> bytes:
        request = service_pb2.ModelInferRequest(model_name="m")
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(b"\2\0\0\0ab")
        if name != "text_input":
            request.inputs.add(name=name, datatype=datatype, shape=[1])
            request.raw_input_contents.append(raw)
        else:
            request.raw_input_contents[0] = raw
        return bytes(request.SerializeToString())

    for message, words in [
        (b"\xff", "no ModelInferRequest"),
        (turn(b"\xff\xff\xff\xffab"), "length in 4 bytes"),
        (turn(b"\1\0"), "length in 4 bytes"),
        (turn(b""), "0 elements"),
        (turn(b"\1\0\0\0\xff"), "no UTF-8"),
        (turn(b"\1\0\0", "max_tokens", "INT32"), "3 bytes are no INT32"),
        (turn(b"\1\0", "max_tokens", "FP16"), "2 bytes are no FP16"),
        (service_pb2.ModelInferRequest(inputs=[{"name": "text_input"}]).SerializeToString(), "name of an endpoint"),
    ]:
        with pytest.raises(Invalid) as error:
            Turn(message)
        assert words in error.value.detail, message


def test_rows_pass_as_they_are() -> None:
    turn = Turn(typed())
    assert (turn.path, turn.body) == (f"/{SERVICE}/ModelInfer", typed())
