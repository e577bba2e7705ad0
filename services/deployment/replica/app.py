"""The replica's answers to HTTP requests, without a socket: who may call, which path means what, and errors in each path's own shape."""

import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from numpy.typing import NDArray

from libs.errors import AppError, Invalid, NotFound, Transient, Unauthenticated, Violation
from libs.inference import REQUESTS, SERVICE
from libs.modelkit.code_runtime import CodeRuntime
from libs.modelkit.raw import Raw
from libs.modelkit.runtime import Runtime
from services.deployment.replica.batching import MAX_WAITING_ROWS, Batcher, Outcome, Waiting
from services.deployment.replica.messages import Messages
from services.deployment.replica.oip import SERVER, Asked, Protocol, parse
from services.deployment.replica.problems import JSON, OCTETS, dump
from services.deployment.replica.replies import Answer, Reply, Request, failed
from services.deployment.replica.texts import Job, Texts
from services.deployment.replica.writing import Writing

MAX_BODY = 32 << 20
MAX_INSTANCES = 10_000
MAX_DEADLINE_DIGITS = 9


Write = Callable[[NDArray[Any]], Reply]
Held = Waiting | Job
Handler = Callable[[Request, Answer], Held | None]


@dataclass(frozen=True)
class Route:
    """What a path takes. `room` is there where work is asked for: it raises where that would wait too long; a drain refuses it, too."""

    methods: tuple[bytes, ...]
    handle: Handler
    room: Callable[[], None] | None = None


class Replica:
    """`token` is what each request carries in x-lepton-replica-token."""

    def __init__(
        self, runtime: Runtime | CodeRuntime, token: str, name: str = "model", version: str = "", max_rows: int = MAX_WAITING_ROWS
    ) -> None:
        self.batcher = Batcher(runtime, max_rows=max_rows)
        self.texts = Texts()
        self.protocol = Protocol(runtime, name, version)
        self.draining = False
        self._messages = Messages(self.protocol, lambda: not self.draining)
        self._runtime = runtime
        self._token = token.encode()
        self._routes = self._make_routes()

    def refuse(self, request: Request) -> Reply | None:
        """What is wrong by the head alone, before any of the body is read; None where nothing is."""
        try:
            if not hmac.compare_digest(request.headers.get(b"x-lepton-replica-token", b""), self._token):
                raise Unauthenticated("x-lepton-replica-token is missing or wrong; a replica is called through its endpoint")
            route = self._route(request)
            if request.method not in route.methods:
                allowed = " or ".join(method.decode() for method in route.methods)
                raise AppError(f"this path takes {allowed}, not {request.method[:10].decode('latin-1')}", code="method_not_allowed")
            if route.room is not None:
                if self.draining:
                    raise Transient("this replica is leaving; ask again, another one answers")
                route.room()
                request.deadline = deadline(request)
            require_size(int(request.headers.get(b"content-length", b"0")[:20]))
        except AppError as error:
            return failed(request, error)
        return None

    def answer(self, request: Request, answer: Answer) -> Held | None:
        """Calls `answer` once, now or later; later it can be withdrawn by what is returned, and so can a stream."""
        try:
            return self._route(request).handle(request, answer)
        except Exception as error:
            answer(failed(request, error))
            return None

    def withdraw(self, held: Held) -> None:
        if isinstance(held, Job):
            self.texts.withdraw(held)
        else:
            self.batcher.withdraw(held)

    def _route(self, request: Request) -> Route:
        path = request.path.partition("?")[0]
        route = self._routes.get(path) or self._routes.get(unquote(path))
        if route is None:
            raise NotFound(f"there is nothing at {path[:100]}; there are /predict, /healthz, /v2/models/{self.protocol.name} and /openai/…")
        return route

    def _make_routes(self) -> Mapping[str, Route]:
        protocol, look = self.protocol, (b"GET", b"HEAD")
        writing = Writing(self._runtime, self.texts, protocol.name, protocol.version)
        routes = {
            "/predict": Route((b"POST",), self._predict, room=self.batcher.require_room),
            "/healthz": Route(look, lambda _, answer: answer(self._health({"status": "ok"}))),
            "/openai/chat": Route((b"POST",), writing.chat, room=self.texts.require_room),
            "/openai/completions": Route((b"POST",), writing.complete, room=self.texts.require_room),
            "/openai/embeddings": Route((b"POST",), writing.embed, room=self.texts.require_room),
            "/v2": _fixed(SERVER),
            "/v2/health/live": _fixed({"live": True}),
            "/v2/health/ready": Route(look, lambda _, answer: answer(self._health({"ready": not self.draining, "live": True}))),
            "/v2/repository/index": Route((b"POST",), self._index),
        }
        for version in ["", f"/versions/{protocol.version}"] if protocol.version else [""]:
            model = f"/v2/models/{protocol.name}{version}"
            routes[model] = _fixed(protocol.metadata())
            routes[f"{model}/ready"] = Route(
                look, lambda _, answer: answer(self._health({"name": protocol.name, "ready": not self.draining}))
            )
            routes[f"{model}/infer"] = Route((b"POST",), self._infer, room=self.batcher.require_room)
            routes[f"{model}/generate"] = Route((b"POST",), writing.generate, room=self.texts.require_room)
            routes[f"{model}/generate_stream"] = Route((b"POST",), writing.generate_stream, room=self.texts.require_room)
            routes[f"{model}/stats"] = Route(look, lambda _, answer: answer(Reply(200, dump(self._statistics()))))
        for action in ("load", "unload"):
            routes[f"/v2/repository/models/{protocol.name}/{action}"] = Route((b"POST",), _refuse_repository)
        for method in REQUESTS:
            routes[f"/{SERVICE}/{method}"] = Route((b"POST",), partial(self._look, method))
        routes[f"/{SERVICE}/ModelInfer"] = Route((b"POST",), self._call, room=self.batcher.require_room)
        return routes

    def _health(self, body: Mapping[str, Any]) -> Reply:
        return Reply(503 if self.draining else 200, dump(body))

    def _index(self, request: Request, answer: Answer) -> None:
        only_ready = parse(request.body or b"{}").get("ready") is True
        answer(Reply(200, dump([] if only_ready and self.draining else self.protocol.index(ready=not self.draining))))

    def _statistics(self) -> dict[str, Any]:
        return {"model_stats": [self.protocol.statistics(self.batcher.statistics)]}

    def _predict(self, request: Request, answer: Answer) -> Waiting | None:
        instances = parse(request.body).get("instances")
        if not isinstance(instances, list):
            message = 'it is missing or not a list; send {"instances": [{...}, ...]}'
            raise Invalid.of([Violation("instances", message)], code="invalid_record")
        require_few(len(instances))
        if not instances:
            answer(Reply(200, b'{"predictions":[]}', _counted(0)))
            return None

        return self._submit(request, answer, self._runtime.read(instances), self._word)

    def _infer(self, request: Request, answer: Answer) -> Waiting | None:
        length = request.headers.get(b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise Invalid("Inference-Header-Content-Length is not a number", code="invalid_request")
        asked, raw = self.protocol.read(request.body, int(length[:12]) if length is not None else None)
        return self._submit(request, answer, raw, partial(self._tensors, asked))

    def _look(self, method: str, request: Request, answer: Answer) -> None:
        answer(Reply(200, self._messages.look(method, request.body), OCTETS))

    def _call(self, request: Request, answer: Answer) -> Waiting:
        asked, raw = self._messages.read(request.body)
        return self._submit(request, answer, raw, partial(self._message, asked))

    def _submit(self, request: Request, answer: Answer, raw: Raw, write: Write) -> Waiting:
        require_few(raw.rows)
        return self.batcher.submit(raw, partial(self._send, request, answer, write), request.deadline, len(request.body))

    def _send(self, request: Request, answer: Answer, write: Write, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            reply = write(outcome)
        except Exception as error:
            reply = failed(request, error)
        answer(reply)

    def _word(self, answers: NDArray[Any]) -> Reply:
        return Reply(200, dump({"predictions": self._runtime.word(answers)}), _counted(len(answers)))

    def _tensors(self, asked: Asked, answers: NDArray[Any]) -> Reply:
        content, json_length = self.protocol.write(asked, answers)
        if json_length is None:
            return Reply(200, content, _counted(len(answers)))
        return Reply(200, content, b"%sinference-header-content-length: %d\r\n" % (_counted(len(answers), OCTETS), json_length))

    def _message(self, asked: Asked, answers: NDArray[Any]) -> Reply:
        return Reply(200, self._messages.write(asked, answers), _counted(len(answers), OCTETS))


def deadline(request: Request) -> float:
    """When the caller stops waiting, in the loop's time: x-lepton-deadline-ms after the request's head came."""
    value = request.headers.get(b"x-lepton-deadline-ms")
    if value is None:
        return math.inf
    if not value.isdigit() or len(value) > MAX_DEADLINE_DIGITS:
        raise Invalid("x-lepton-deadline-ms is not a whole number of milliseconds", code="invalid_request")
    return request.received + int(value) / 1000


def require_size(size: int) -> None:
    if size > MAX_BODY:
        raise Invalid(f"the body is larger than {MAX_BODY >> 20} MiB; send fewer instances in one request", code="too_large")


def require_few(rows: int) -> None:
    if rows > MAX_INSTANCES:
        raise Invalid(f"{rows} instances are more than {MAX_INSTANCES} in one request; send them in parts", code="too_large")


def _counted(rows: int, headers: bytes = JSON) -> bytes:
    return b"%sx-lepton-rows: %d\r\n" % (headers, rows)


def _fixed(body: Mapping[str, Any]) -> Route:
    reply = Reply(200, dump(body))
    return Route((b"GET", b"HEAD"), lambda _, answer: answer(reply))


def _refuse_repository(request: Request, answer: Answer) -> None:
    raise AppError("a replica serves the one model that it was started with; change the endpoint instead", code="unimplemented")
