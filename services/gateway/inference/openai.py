"""Texts: which endpoint a body is for, and the tokens of a stream as it passes. Everything else is the replica's affair."""

from collections.abc import AsyncGenerator, Callable

import orjson

from libs.errors import AppError, Invalid, Violation
from libs.errors.openai import openai_document
from libs.rpc.json_codec import loads
from services.gateway.inference.connection import BrokenOff, Stream
from services.gateway.inference.metering import Use
from services.gateway.problems import OPENAI_PATHS

REPLICA_PATHS = dict(zip(OPENAI_PATHS, ("/openai/chat", "/openai/completions", "/openai/embeddings"), strict=True))
# What a replica reads of text, with each sign escaped.
ASKED_BYTES = 4 << 20
# So many tokens are lost at most where this process is killed in the middle of a stream.
TOLD_TOKENS = 64
# Beyond what any endpoint, or listing with its publisher, is called.
LONGEST_NAME = 140
# A replica's event that holds a piece has this once, and no text can: its quotes would be escaped. Whether by OpenAI's API.
_PIECES = {True: b'"finish_reason":null', False: b'"text_output":'}


def model_of(body: bytes) -> str:
    """The endpoint's name; raises Invalid."""
    asked = loads(body)
    model = asked.get("model") if isinstance(asked, dict) else None
    if not isinstance(model, str) or not 0 < len(model) <= LONGEST_NAME:
        raise Invalid.of([Violation("model", "it must be the name of an endpoint; GET /v1/models lists them as `data`")])
    return model


async def charged(stream: Stream, charge: Callable[[Use], None], *, by_openai: bool = True) -> AsyncGenerator[bytes, None]:
    """The parts, with each token told that came from the replica, however the stream ends. One that breaks off ends with an error event."""
    piece, tail, tokens = _PIECES[by_openai], b"", 0
    try:
        async for part in stream:
            seen = tail + part
            tokens += seen.count(piece)
            tail = seen[1 - len(piece) :]
            if tokens >= TOLD_TOKENS:
                tokens, told = 0, tokens
                charge(Use(0, tokens_out=told))
            yield part
    except BrokenOff:
        if not tail.endswith(b"\n\n"):
            raise
        error = AppError("the replica broke off in the middle of its answer; try again", code="upstream_failed")
        yield b"data: %s\n\n" % orjson.dumps(openai_document(error) if by_openai else {"error": error.detail})
    finally:
        stream.close()
        if tokens:
            charge(Use(0, tokens_out=tokens))
