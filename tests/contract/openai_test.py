"""The stock OpenAI client, a gateway, and the replica's own server with a model that writes: texts whole and in streams."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionStreamOptionsParam

from lepton.deployment.v1 import deployment_service_pb2
from libs.modelkit.runtime import Runtime
from services.deployment.replica.app import Replica
from services.deployment.replica.conftest import runtime  # noqa: F401
from services.deployment.replica.server import Server
from services.gateway.conftest import World, datasets, limits, models, world  # noqa: F401

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "one two three"}]


class Writer:
    """Says its prompt's words again, for as long as it may; `pause` before each."""

    def __init__(self) -> None:
        self.pause, self.written, self.endless = 0.0, 0, False

    def generate(self, prompt: str, *, max_tokens: int, temperature: float, stop: list[str]) -> Iterator[str]:
        words = prompt.split()
        for number in range(max_tokens if self.endless else len(words)):
            time.sleep(self.pause)
            self.written += 1
            yield words[number % len(words)] + " "


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
async def client(world: World, runtime: Runtime, writer: Writer) -> AsyncIterator[openai.AsyncOpenAI]:  # noqa: F811
    serving = Runtime(runtime.package, runtime._model, "words")
    serving.generate = writer.generate
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server = Server(Replica(serving, "token", "wdbc"))
    await server.start(listening)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    world.behind.deployment.replicas.append(deployment_service_pb2.ReplicaAddress(id="r1", url=url, token="token"))
    async with openai.AsyncOpenAI(base_url=f"{world.gateway.address}/v1", api_key="owner-key", max_retries=0) as client:
        yield client
    await server.drain(1)


async def recorded(world: World, tokens_out: int) -> tuple[int, int, int]:  # noqa: F811
    """Requests and tokens, once so many are."""
    async with asyncio.timeout(20):
        while True:
            records = [record for batch in world.behind.deployment.batches.values() for record in batch.records]
            if (out := sum(record.tokens_out for record in records)) >= tokens_out:
                return sum(record.requests for record in records), sum(record.tokens_in for record in records), out
            await asyncio.sleep(0.05)


async def test_a_chat(client: openai.AsyncOpenAI, world: World) -> None:  # noqa: F811
    answer = await client.chat.completions.create(model="wdbc", messages=USER, max_tokens=3)
    assert answer.choices[0].message.content == "user: one two "
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.to_dict() == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert await recorded(world, 3) == (1, 7, 3)


async def test_a_chat_that_streams(client: openai.AsyncOpenAI, writer: Writer, world: World) -> None:  # noqa: F811
    writer.pause = 0.1
    started, first = time.monotonic(), 0.0
    usage = ChatCompletionStreamOptionsParam(include_usage=True)
    chunks = []
    async for chunk in await client.chat.completions.create(model="wdbc", messages=USER, stream=True, stream_options=usage):
        first = first or time.monotonic() - started
        chunks.append(chunk)
    whole = time.monotonic() - started
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "user: one two three assistant: "
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 5
    assert first < whole / 2
    assert await recorded(world, 5) == (1, 7, 5)


async def test_completions_both_ways(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="wdbc", prompt="one two")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one two ", "stop")
    parts = [chunk.choices[0].text async for chunk in await client.completions.create(model="wdbc", prompt="one two", stream=True)]
    assert parts == ["one ", "two ", ""]


async def test_whoever_leaves_pays_for_what_came_and_nothing_more_is_written(
    client: openai.AsyncOpenAI,
    writer: Writer,
    world: World,  # noqa: F811
) -> None:
    writer.endless, writer.pause = True, 0.005
    stream = await client.completions.create(model="wdbc", prompt="on", stream=True, max_tokens=5000)
    for _ in range(10):
        await anext(stream)
    await stream.close()
    requests, tokens_in, tokens_out = await recorded(world, 10)
    assert (requests, tokens_in) == (1, 1)
    assert 10 <= tokens_out < 1000
    written = writer.written
    await asyncio.sleep(0.3)
    assert writer.written <= written + 1


async def test_the_open_inference_protocol_streams_and_is_recorded_too(client: openai.AsyncOpenAI, world: World) -> None:  # noqa: F811
    path, asked = "/v2/models/wdbc/generate", {"text_input": "one two"}
    assert (await world.client.post(path, json=asked)).json()["text_output"] == "one two "
    response = await world.client.post(f"{path}_stream", json=asked)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.text.count("data: ") == 2
    assert await recorded(world, 4) == (2, 4, 4)


async def test_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="wdbc", messages=USER, temperature=3)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_request")
    with pytest.raises(openai.BadRequestError, match="gives no vectors"):
        await client.embeddings.create(model="wdbc", input="x")
    with pytest.raises(openai.NotFoundError, match="did you mean wdbc"):
        await client.completions.create(model="wdbcc", prompt="x")
    with pytest.raises(openai.APIStatusError) as large:
        await client.completions.create(model="wdbc", prompt="x" * (10 << 20))
    assert large.value.status_code == 413


async def test_a_crowd_is_told_when_to_come_again(client: openai.AsyncOpenAI, writer: Writer) -> None:
    writer.pause = 0.05
    asking = [client.completions.create(model="wdbc", prompt="one") for _ in range(45)]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert 0 < len(refused) == 45 - sum(not isinstance(answer, BaseException) for answer in answers)
    assert refused[0].response.headers["retry-after"] == "1"
