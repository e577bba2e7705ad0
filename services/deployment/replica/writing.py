"""Texts and vectors: what is asked becomes a job, and its pieces an answer or a stream of events. Knows no socket."""

from collections.abc import Callable, Iterator
from typing import Any

from libs.errors import Invalid
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.runtime import Runtime
from services.deployment.replica.generation import read_generation
from services.deployment.replica.openai import EVENTS, Asked, read_chat, read_completion, read_embeddings
from services.deployment.replica.problems import JSON
from services.deployment.replica.replies import Answer, Reply, Request, failed, sayable
from services.deployment.replica.texts import Job, Stream, Texts


class Writing:
    """Handlers of requests for texts and vectors."""

    def __init__(self, runtime: Runtime | CodeRuntime, texts: Texts, name: str, version: str) -> None:
        self._runtime, self._texts, self._name, self._version = runtime, texts, name, version

    def chat(self, request: Request, answer: Answer) -> Job:
        return self._write(read_chat(request.body), request, answer)

    def complete(self, request: Request, answer: Answer) -> Job:
        return self._write(read_completion(request.body), request, answer)

    def generate(self, request: Request, answer: Answer) -> Job:
        return self._write(read_generation(request.body, self._name, self._version, stream=False), request, answer)

    def generate_stream(self, request: Request, answer: Answer) -> Job:
        return self._write(read_generation(request.body, self._name, self._version, stream=True), request, answer)

    def embed(self, request: Request, answer: Answer) -> Job:
        asked = read_embeddings(request.body)
        if (embed := self._runtime.embed) is None:
            raise Invalid(f"endpoint '{asked.model or self._name}' gives no vectors of texts", code="invalid_request")
        content: list[bytes] = []

        def done(error: Exception | None) -> None:
            if error is not None:
                answer(failed(request, error))
            else:
                answer(Reply(200, content[0], _used(JSON, len(asked.texts), asked.tokens_in, 0)))

        return self._submit(lambda: asked.write(embed), content.append, done, request)

    def _write(self, asked: Asked, request: Request, answer: Answer) -> Job:
        if (generate := self._runtime.generate) is None:
            raise Invalid(f"endpoint '{asked.model or self._name}' serves no model that writes text", code="invalid_request")
        taker = _Streamed(asked, request, answer) if asked.stream else _Whole(asked, request, answer)
        job = self._submit(lambda: asked.write(generate), taker.take, taker.done, request)
        taker.read = job.read
        return job

    def _submit(
        self, make: Callable[[], Iterator[Any]], take: Callable[[Any], None], done: Callable[[Exception | None], None], request: Request
    ) -> Job:
        return self._texts.submit(Job(make, take, done, request.deadline))


class _Whole:
    """Pieces are kept until they are all there."""

    def __init__(self, asked: Asked, request: Request, answer: Answer) -> None:
        self._asked, self._request, self._answer = asked, request, answer
        self._pieces: list[str] = []
        self.read: Callable[[], None] = lambda: None

    def take(self, piece: str) -> None:
        self._pieces.append(piece)
        self.read()

    def done(self, error: Exception | None) -> None:
        if error is not None:
            self._answer(failed(self._request, error))
            return
        self._asked.tokens_out = len(self._pieces)
        content = self._asked.whole(self._pieces)
        self._answer(Reply(200, content, _used(JSON, 1, self._asked.tokens_in, len(self._pieces))))


class _Streamed:
    """The head goes with the first piece: what fails before it has a status."""

    def __init__(self, asked: Asked, request: Request, answer: Answer) -> None:
        self._asked, self._request, self._answer = asked, request, answer
        self._stream: Stream | None = None
        self.read: Callable[[], None] = lambda: None

    def take(self, piece: str) -> None:
        first = self._stream is None
        self._asked.tokens_out += 1
        self._begin().add(self._asked.event(piece, first=first))

    def done(self, error: Exception | None) -> None:
        if error is None:
            self._begin().end(self._asked.end())
        elif self._stream is None:
            self._answer(failed(self._request, error))
        else:
            self._stream.end(self._asked.broken(sayable(error)))

    def _begin(self) -> Stream:
        if self._stream is None:
            self._stream = Stream(self.read)
            self._answer(Reply(200, b"", _used(EVENTS, 1, self._asked.tokens_in, None), self._stream))
        return self._stream


def _used(headers: bytes, rows: int, tokens_in: int, tokens_out: int | None) -> bytes:
    """What is to be paid for; of a stream the pieces are counted by who passes them on."""
    out = b"" if tokens_out is None else b"x-lepton-tokens-out: %d\r\n" % tokens_out
    return b"%sx-lepton-rows: %d\r\nx-lepton-tokens-in: %d\r\n%s" % (headers, rows, tokens_in, out)
