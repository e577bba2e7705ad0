"""gRPC beside HTTP in the same process: a call is a request of its own path. Only this module knows grpc."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import orjson

from libs.errors import CATALOGUE, Transient
from libs.inference import REQUESTS, SERVICE
from services.deployment.replica.app import MAX_BODY, MAX_DEADLINE_DIGITS, Replica
from services.deployment.replica.batching import MAX_WAITING_BYTES
from services.deployment.replica.problems import PROBLEM
from services.deployment.replica.replies import Reply, Request, failed

_MAX_CALLS = 256
_TOKEN, _DEADLINE = "x-lepton-replica-token", b"x-lepton-deadline-ms"
_ROWS = re.compile(rb"^(x-lepton-rows): (\d+)", re.MULTILINE)

Context = Any  # grpc.aio.ServicerContext, which has no types


class InferenceServer:
    """Answers for `replica` until it is drained."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._held = 0
        options = [
            ("grpc.max_receive_message_length", MAX_BODY),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", _MAX_CALLS),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_CALLS)
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._handler(f"/{SERVICE}/{name}")) for name in REQUESTS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, host: str, port: int) -> int:
        """The port where it listens; raises OSError where it cannot."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(0, "the address is taken or not this machine's") from error
        await self._server.start()
        return int(bound)

    async def drain(self, seconds: float) -> None:
        await self._server.stop(seconds)

    def _handler(self, path: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(body: bytes, context: Context) -> bytes:
            token = dict(context.invocation_metadata() or ()).get(_TOKEN, "")
            headers = {_TOKEN.encode(): token.encode() if isinstance(token, str) else token}
            if (seconds := context.time_remaining()) is not None:
                headers[_DEADLINE] = b"%d" % min(seconds * 1000, 10**MAX_DEADLINE_DIGITS - 1)
            request = Request(b"POST", path, headers, body, received=asyncio.get_running_loop().time())
            reply = self._replica.refuse(request) or await self._answer(request)
            if reply.headers.startswith(PROBLEM):
                said = orjson.loads(reply.body)
                await context.abort(grpc.StatusCode[CATALOGUE[said["code"]].grpc], said["detail"])  # raises
            if found := _ROWS.search(reply.headers):
                context.set_trailing_metadata((tuple(part.decode() for part in found.groups()),))
            return reply.body

        return handle

    async def _answer(self, request: Request) -> Reply:
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def settle(reply: Reply) -> None:
            if not answered.done():  # the caller may have gone
                answered.set_result(reply)

        try:
            with self._holding(len(request.body)):
                waiting = self._replica.answer(request, settle)
                try:
                    return await answered
                finally:
                    if waiting is not None:
                        self._replica.withdraw(waiting)  # where the caller went away
        except Transient as error:
            return failed(request, error)

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        """A call keeps its message until it is answered; all of them together are bounded."""
        if self._held and self._held + size > MAX_WAITING_BYTES:
            raise Transient("too many large requests are in hand; try again", code="rate_limited")
        self._held += size
        try:
            yield
        finally:
            self._held -= size
