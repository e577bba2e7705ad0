"""OpenAI's requests on a model that writes, over real sockets: answers, streams, and callers that are slow, rude or gone."""

import asyncio
import base64
import json
import socket
import threading
import time

import numpy as np
import pytest

from libs.modelkit.runtime import Runtime
from services.deployment.replica.server_test import QUICK, post, serving, until

CHAT = {"model": "words", "messages": [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Good day"}]}


class Writer:
    """Says its prompt's words again; `pause` before each, and what it noticed."""

    def __init__(self):
        self.pause, self.error, self.asked, self.made, self.left, self.endless = 0.0, None, [], 0, threading.Event(), False

    def generate(self, prompt, *, max_tokens, temperature, stop):
        self.asked.append((prompt, max_tokens, temperature, stop))
        words = prompt.split()
        try:
            while True:
                for word in words:
                    time.sleep(self.pause)
                    self.made += 1
                    yield word + " "
                    if self.error:
                        raise self.error
                if not self.endless:
                    return
        finally:
            self.left.set()


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
def words(runtime, writer):
    made = Runtime(runtime.package, runtime._model, "words")
    made.generate = writer.generate
    made.embed = lambda texts: [[float(len(text)), 0.5] for text in texts]
    return made


def ask(path, body, headers=b""):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return post(content, b"/openai/" + path, headers)


async def stream(caller, data):
    """Headers and events of a stream, to its end."""
    caller.send(data)
    head = await caller.reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head and b"text/event-stream" in head
    content = b""
    while size := int(await caller.reader.readuntil(b"\r\n"), 16):
        content += await caller.reader.readexactly(size)
        await caller.reader.readexactly(2)
    await caller.reader.readexactly(2)
    events = content.decode().split("\n\n")
    assert events.pop() == ""
    return head, [event.removeprefix("data: ") for event in events]


async def test_a_chat_is_answered_whole(words, writer):
    async with serving(words) as place:
        status, headers, body = await (await place.call()).ask(ask(b"chat", CHAT | {"max_completion_tokens": 3}))
    answer = json.loads(body)
    assert status == 200
    assert (answer["object"], answer["model"]) == ("chat.completion", "words")
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "system: Be short ", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    assert (headers["x-lepton-rows"], headers["x-lepton-tokens-in"], headers["x-lepton-tokens-out"]) == ("1", "10", "3")
    assert writer.asked == [("system: Be short\nuser: Good day\nassistant:", 3, 1.0, ["\nuser:"])]


async def test_a_stream_ends_with_usage_and_the_connection_goes_on(words):
    body = {"model": "words", "prompt": "one two", "stream": True, "stream_options": {"include_usage": True}}
    async with serving(words) as place:
        caller = await place.call()
        head, events = await stream(caller, ask(b"completions", body))
        assert (await caller.ask(post()))[0] == 200
    assert b"x-lepton-tokens-in: 2" in head
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["one ", "two ", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_vectors_as_base64_and_as_numbers(words):
    async with serving(words) as place:
        caller = await place.call()
        _, headers, body = await caller.ask(ask(b"embeddings", {"input": ["ab", "abc"], "encoding_format": "base64"}))
        data = json.loads(body)["data"]
        assert np.frombuffer(base64.b64decode(data[1]["embedding"]), "<f4").tolist() == [3.0, 0.5]
        assert (headers["x-lepton-rows"], headers["x-lepton-tokens-in"]) == ("2", "2")
        _, _, body = await caller.ask(ask(b"embeddings", {"input": "ab"}))
        assert json.loads(body)["data"][0]["embedding"] == [2.0, 0.5]


async def test_a_model_that_does_not_write_says_so(runtime):
    async with serving(runtime) as place:
        caller = await place.call()
        for path, body in ((b"chat", CHAT), (b"completions", {"prompt": "x"}), (b"embeddings", {"model": "words", "input": "x"})):
            status, _, content = await caller.ask(ask(path, body))
            error = json.loads(content)["error"]
            assert (status, list(error)) == (400, ["message", "type", "param", "code"])
            assert "endpoint '" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (b"chat", b"{", None),
        (b"chat", b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', None),
        (b"chat", CHAT | {"temperature": 2.1}, "temperature"),
        (b"chat", CHAT | {"temperature": True}, "temperature"),
        (b"chat", CHAT | {"messages": "x"}, "messages"),
        (b"chat", CHAT | {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (b"chat", CHAT | {"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        (b"chat", CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (b"chat", CHAT | {"max_tokens": 1e9}, "max_tokens"),
        (b"chat", CHAT | {"n": 2}, "n"),
        (b"chat", CHAT | {"top_p": 0.5, "presence_penalty": 0}, "top_p"),
        (b"completions", {"prompt": "x", "seed": 1}, "seed"),
        (b"chat", CHAT | {"stop": [""]}, "stop"),
        (b"chat", CHAT | {"stream": "yes"}, "stream"),
        (b"chat", CHAT | {"stream_options": [1]}, "stream_options"),
        (b"completions", {"prompt": ["a", "b"]}, "prompt"),
        (b"completions", {"prompt": [1, 2]}, "prompt"),
        (b"embeddings", {"input": []}, "input"),
        (b"embeddings", {"input": [1]}, "input"),
        (b"embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        (b"embeddings", {"input": "x", "encoding_format": ["hex"]}, "encoding_format"),
        (b"embeddings", {"input": "x", "dimensions": 3}, "dimensions"),
    ],
)
async def test_what_is_wrong_is_named(words, path, body, param):
    async with serving(words) as place:
        caller = await place.call()
        status, _, content = await caller.ask(ask(path, body))
        error = json.loads(content)["error"]
        assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert await place.lives()


async def test_what_is_too_long_is_not_begun(words, writer):
    async with serving(words) as place:
        caller = await place.call()
        for path, body in ((b"completions", {"prompt": "x" * (10 << 20)}), (b"embeddings", {"input": ["x"] * 3000})):
            assert (await caller.ask(ask(path, body)))[0] == 413
    assert writer.asked == []


async def test_whoever_goes_away_ends_the_text(words, writer):
    writer.endless, writer.pause = True, 0.005
    async with serving(words) as place:
        caller = await place.call()
        caller.send(ask(b"completions", {"prompt": "on and on", "max_tokens": 8000, "stream": True}))
        await until(lambda: writer.made > 3)
        caller.writer.transport.abort()
        assert await asyncio.to_thread(writer.left.wait, 5)
        assert writer.made < 2000
        writer.endless = False
        assert (await (await place.call()).ask(ask(b"completions", {"prompt": "next"})))[0] == 200


async def test_a_reader_that_does_not_read_holds_the_writer_back(words, writer):
    writer.endless = True
    async with serving(words, QUICK) as place:
        caller = await place.call()
        await until(lambda: place.server.connections)
        [connection] = place.server.connections
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        caller.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        caller.send(ask(b"completions", {"prompt": "x" * 2000, "max_tokens": 8000, "stream": True}))
        assert await asyncio.to_thread(writer.left.wait, 20)
        # Of 4 MB that might be: what buffers hold, and those ahead.
        assert writer.made < 1000
        assert await place.lives()


async def test_too_many_are_told_to_come_again(words, writer):
    writer.pause = 0.05
    async with serving(words) as place:
        callers = [await place.call() for _ in range(40)]
        answers = await asyncio.gather(*(caller.ask(ask(b"completions", {"prompt": "a"})) for caller in callers))
    statuses = [status for status, _, _ in answers]
    assert statuses.count(200) >= 33
    refused = [(headers, json.loads(body)["error"]) for status, headers, body in answers if status == 429]
    assert len(refused) == 40 - statuses.count(200) > 0
    assert all(headers["retry-after"] == "1" and error["type"] == "rate_limit_error" for headers, error in refused)


async def test_places_of_those_who_left_are_free(words, writer):
    writer.endless, writer.pause = True, 0.01
    async with serving(words) as place:
        first = await place.call()
        first.send(ask(b"completions", {"prompt": "a", "max_tokens": 8000, "stream": True}))
        await until(lambda: writer.made > 1)
        waiting = [await place.call() for _ in range(32)]
        for caller in waiting:
            caller.send(ask(b"completions", {"prompt": "b"}))
        other = await place.call()
        await until(lambda: len(place.server.application.texts._waiting) == 32)
        assert (await other.ask(ask(b"completions", {"prompt": "c"})))[0] == 429
        for caller in waiting:
            caller.writer.transport.abort()
        await until(lambda: not place.server.application.texts._waiting)
        writer.endless = False
        assert (await other.ask(ask(b"completions", {"prompt": "c"})))[0] == 200


async def test_time_that_is_over_ends_a_stream_in_words(words, writer):
    writer.endless, writer.pause = True, 0.02
    async with serving(words) as place:
        caller = await place.call()
        body = {"prompt": "a", "max_tokens": 8000, "stream": True}
        _, events = await stream(caller, ask(b"completions", body, b"x-lepton-deadline-ms: 300\r\n"))
        assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
        assert (await caller.ask(ask(b"completions", {"prompt": "a"}, b"x-lepton-deadline-ms: 1\r\n")))[0] == 504


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_model_s_mistake_is_told_and_the_next_one_is_answered(words, writer, streamed):
    writer.error = RuntimeError("its own words stay in the log")
    async with serving(words) as place:
        caller = await place.call()
        if streamed:
            _, events = await stream(caller, ask(b"completions", {"prompt": "a", "stream": True}))
            error = json.loads(events[-1])["error"]
        else:
            status, _, body = await caller.ask(ask(b"completions", {"prompt": "a"}))
            error = json.loads(body)["error"]
            assert status == 500
        assert error["type"] == "server_error"
        assert "its own words" not in error["message"]
        writer.error = None
        assert (await caller.ask(ask(b"completions", {"prompt": "a"})))[0] == 200


async def test_a_drain_lets_a_stream_end(words, writer):
    writer.pause = 0.05
    async with serving(words) as place:
        caller = await place.call()
        asking = asyncio.create_task(stream(caller, ask(b"completions", {"prompt": "a b c d e f", "stream": True})))
        await until(lambda: writer.made > 1)
        await place.server.drain(5)
        _, events = await asking
        assert events[-1] == "[DONE]"
        assert writer.made == 6


async def test_the_open_inference_protocol_writes_too(words, writer):
    async with serving(words) as place:
        caller = await place.call()
        body = json.dumps({"text_input": "one two three", "parameters": {"max_tokens": 2, "temperature": 0}}).encode()
        _, headers, content = await caller.ask(post(body, b"/v2/models/m/generate"))
        assert json.loads(content) == {"model_name": "m", "model_version": "", "text_output": "one two "}
        assert headers["x-lepton-tokens-out"] == "2"
        head, events = await stream(caller, post(body, b"/v2/models/m/generate_stream"))
        assert b"x-lepton-tokens-in: 3" in head
        assert [json.loads(event)["text_output"] for event in events] == ["one ", "two "]
        for wrong in ({"text_input": 1}, {"text_input": "x", "parameters": {"top_k": 3}}, {"text_input": "x", "parameters": [1]}):
            status, _, content = await caller.ask(post(json.dumps(wrong).encode(), b"/v2/models/m/generate"))
            assert (status, list(json.loads(content))) == (400, ["error"])
        writer.error = RuntimeError("no")
        _, events = await stream(caller, post(body, b"/v2/models/m/generate_stream"))
        assert list(json.loads(events[-1])) == ["error"]
