"""OpenAI's requests for texts and vectors, as its clients send them, and the answers that they read. Knows no transport and no thread."""

import base64
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libs.errors import AppError, Invalid, Violation
from libs.errors.openai import openai_document
from libs.modelkit.text import tokenise
from libs.modelkit.writing import Embed, Generate, bounded
from services.deployment.replica.oip import parse
from services.deployment.replica.problems import dump

EVENTS = b"content-type: text/event-stream\r\ncache-control: no-store\r\n"
DONE = b"data: [DONE]\n\n"
MAX_CHARACTERS = 256 << 10
MAX_MESSAGES = 1000
MAX_TOKENS = 8192
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TEXTS = 2048
_CHAT_TOKENS, _TOKENS = 256, 16
_ROLES = ("system", "developer", "user", "assistant")
# Asked for by many clients with the value that means nothing; with another one it would be ignored without a word.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "seed": (),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "dimensions": (),
    "modalities": (["text"],),
}


@dataclass(slots=True)
class Asked:
    """A text that shall go on. `tokens_in` is known once it was begun."""

    chat: bool
    model: str
    prompt: str
    max_tokens: int
    temperature: float
    stop: list[str]
    stream: bool
    include_usage: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def finish(self) -> str:
        return "length" if self.tokens_out >= self.max_tokens else "stop"

    def write(self, generate: Generate) -> Iterator[str]:
        """The pieces, no more than were asked for, whatever the model does."""
        self.tokens_in = count(self.prompt)
        pieces = generate(self.prompt, max_tokens=self.max_tokens, temperature=self.temperature, stop=list(self.stop))
        try:
            yield from bounded(pieces, self.max_tokens)
        finally:
            # Not by and by: what it holds is large.
            if (close := getattr(pieces, "close", None)) is not None:
                close()

    def whole(self, pieces: Sequence[str]) -> bytes:
        """The answer in one."""
        text = "".join(pieces)
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.finish}
        return dump({**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    def event(self, piece: str, *, first: bool) -> bytes:
        """A piece in a stream. Each is one event, and each event with a choice that has not finished is a piece: whoever counts may."""
        said = {"delta": {**({"role": "assistant"} if first else {}), "content": piece}} if self.chat else {"text": piece}
        return self._event([{"index": 0, **said, "logprobs": None, "finish_reason": None}])

    def end(self) -> bytes:
        """The last events of a stream."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        last = self._event([{"index": 0, **said, "logprobs": None, "finish_reason": self.finish}])
        return last + (self._event([], self._usage()) if self.include_usage else b"") + DONE

    def broken(self, error: AppError) -> bytes:
        """The last event of a stream that could not be ended well."""
        return event(openai_document(error))

    def _event(self, choices: list[Any], usage: Mapping[str, int] | None = None) -> bytes:
        with_usage = {"usage": usage} if self.include_usage else {}
        return event({**self._head("chat.completion.chunk"), "choices": choices, **with_usage})

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind, prefix = (chat_object, "chatcmpl-") if self.chat else ("text_completion", "cmpl-")
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, int]:
        both = self.tokens_in + self.tokens_out
        return {"prompt_tokens": self.tokens_in, "completion_tokens": self.tokens_out, "total_tokens": both}


@dataclass(slots=True)
class Embedded:
    """Texts whose vectors are wanted."""

    model: str
    texts: list[str]
    base64: bool
    tokens_in: int = 0

    def write(self, embed: Embed) -> Iterator[bytes]:
        """The answer, once; raises AppError where there are no vectors."""
        self.tokens_in = sum(map(count, self.texts))
        try:
            vectors = np.asarray(embed(list(self.texts)), "<f4")
        except (ValueError, TypeError) as error:
            raise AppError("the model gave no vectors of one length", code="upstream_failed") from error
        if vectors.ndim != 2 or len(vectors) != len(self.texts) or not np.isfinite(vectors).all():
            raise AppError(f"the model gave no {len(self.texts)} vectors of finite numbers", code="upstream_failed")
        yield self._answer(vectors)

    def _answer(self, vectors: NDArray[np.float32]) -> bytes:
        """base64 of little-endian float32 is what OpenAI's Python client asks for unless it is told otherwise."""
        shown = (base64.b64encode(row.tobytes()).decode() if self.base64 else row.tolist() for row in vectors)
        data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(shown)]
        usage = {"prompt_tokens": self.tokens_in, "total_tokens": self.tokens_in}
        return dump({"object": "list", "data": data, "model": self.model, "usage": usage})


def read_chat(body: bytes) -> Asked:
    """Raises `Invalid` that names what is wrong."""
    data = read_object(body)
    limit = data.get("max_completion_tokens") if data.get("max_completion_tokens") is not None else data.get("max_tokens")
    asked = asked_of(data, True, _prompt_of(data.get("messages")), limit, _CHAT_TOKENS)
    # Without it a model that goes on with the conversation would write the user's part too.
    asked.stop.append("\nuser:")
    return asked


def read_completion(body: bytes) -> Asked:
    """As `read_chat`."""
    data = read_object(body)
    prompt = data.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        [prompt] = prompt
    if not isinstance(prompt, str):
        raise wrong("prompt", "it must be one text; lists of several texts, and of token numbers, are not supported")
    return asked_of(data, False, prompt, data.get("max_tokens"), _TOKENS)


def read_embeddings(body: bytes) -> Embedded:
    """As `read_chat`."""
    data = read_object(body)
    texts = [data["input"]] if isinstance(data.get("input"), str) else data.get("input")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise wrong("input", "it must be a text or a list of texts, none of them empty; token numbers are not supported")
    if len(texts) > MAX_TEXTS:
        raise Invalid(f"{len(texts)} texts are more than {MAX_TEXTS} in one request; send them in parts", code="too_large")
    form = data.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise wrong("encoding_format", "it must be float or base64")
    _require_short(sum(map(len, texts)), "input")
    return Embedded(_model(data), texts, form == "base64")


def count(text: str) -> int:
    """Tokens of what comes in: words and single signs, for every model alike, since a model need not say how it divides them."""
    return len(tokenise(text))


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: %s\n\n" % dump(value)


def read_object(body: bytes) -> dict[str, Any]:
    data = parse(body)
    for name, neutral in _NEUTRAL.items():
        if (value := data.get(name)) is not None and value not in neutral:
            raise wrong(name, f"it is not supported here{'; leave it out' if not neutral else f', but for {neutral[0]!r}'}")
    return data


def asked_of(data: Mapping[str, Any], chat: bool, prompt: str, limit: Any, default: int) -> Asked:
    _require_short(len(prompt), "messages" if chat else "prompt")
    limit = default if limit is None else limit
    if type(limit) is not int or not 1 <= limit <= MAX_TOKENS:
        raise wrong("max_tokens", f"it must be a whole number from 1 to {MAX_TOKENS}")
    temperature = 1.0 if data.get("temperature") is None else data["temperature"]
    if type(temperature) not in (int, float) or not 0 <= temperature <= 2 or not math.isfinite(temperature):
        raise wrong("temperature", "it must be a number from 0 to 2")
    stream, options = data.get("stream") or False, data.get("stream_options") or {}
    if type(stream) is not bool:
        raise wrong("stream", "it must be true or false")
    if not isinstance(options, dict) or type(options.get("include_usage") or False) is not bool:
        raise wrong("stream_options", 'it must be an object such as {"include_usage": true}')
    with_usage = stream and bool(options.get("include_usage"))
    return Asked(chat, _model(data), prompt, limit, float(temperature), _stops(data.get("stop")), stream, with_usage)


def _stops(stop: Any) -> list[str]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise wrong("stop", f"it must be a text or a list of up to {MAX_STOPS}")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_CHARACTERS for each in stops):
        raise wrong("stop", f"each must be a text of 1 to {MAX_STOP_CHARACTERS} characters")
    return list(stops)


def _prompt_of(messages: Any) -> str:
    """A line a message, "role: content", and then the assistant's turn."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", 'it must be a list such as [{"role": "user", "content": "Good day"}]')
    if len(messages) > MAX_MESSAGES:
        raise wrong("messages", f"{len(messages)} are more than {MAX_MESSAGES}")
    lines = [_line(message, f"messages[{index}]") for index, message in enumerate(messages)]
    return "".join([*lines, "assistant:"])


def _line(message: Any, where: str) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"it must be one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str):
        raise wrong(f"{where}.content", "it must be a text, or a list of parts of the type text")
    return f"{role}: {content}\n"


def _model(data: Mapping[str, Any]) -> str:
    model = data.get("model")
    return model if isinstance(model, str) else ""


def _require_short(characters: int, where: str) -> None:
    if characters > MAX_CHARACTERS:
        raise Invalid(f"{where}: {characters} characters are more than {MAX_CHARACTERS}", code="too_large")


def wrong(where: str, message: str) -> Invalid:
    return Invalid.of([Violation(where, message)], code="invalid_request")
